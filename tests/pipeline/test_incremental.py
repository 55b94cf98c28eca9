"""Whatever is edited between runs: what they leave is what a fresh run of the last workflow leaves in an empty root.

300 drawn cases, or as many as a process plays in 120 seconds. More: `python tests/pipeline/incremental --cases 5000`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from incremental.find_mutants import find

HERE = Path(__file__).parent / "incremental"


def test_incremental_runs_are_as_fresh_ones() -> None:
    command = [sys.executable, str(HERE), "--cases", "300", "--seconds", "120", "--ray-every", "40"]
    command += ["--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=290)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("mend", ["W2", "W4"])
def test_it_finds_a_mend_that_is_taken_out(mend: str) -> None:
    """All of them: `python tests/pipeline/incremental/find_mutants.py`."""
    assert find(mend, "--cases", "40")
