"""benchmarks/conserve.py, small: 1,500 rows of real alt-text, planted faults, a kill; every row comes out, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "conserve.py"


@pytest.mark.slow
def test_rows_are_conserved_under_a_kill(data: Callable[[str], Path]) -> None:
    root = data("alttext").parent
    options = ["--rows", "1500", "--kills", "1", "--shard-rows", "250", "--local"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env={**os.environ, "VLPIPE_DATA": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["rows_in"] == 1500 == found["rows_out"] + sum(found["rejects"].values())
    assert {**found["rejects"], "good": found["rows_out"]} == found["planted"]
    assert found["kills"] == 1
