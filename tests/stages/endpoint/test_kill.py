"""Whatever is killed, and whenever: what is stored is not asked again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--ray"], ["--ray", "--worker"]], ids=["local", "driver", "worker"])
def test_a_killed_run_asks_nothing_stored_again(tmp_path: Path, more: list[str]) -> None:
    """The server's log is compared with what the root had before each run; see kill_rounds.py."""
    command = [sys.executable, str(HERE / "kill_rounds.py"), str(tmp_path), "2", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 questions" in done.stdout
