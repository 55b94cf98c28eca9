"""The runner and the local executor run planned steps without what makes the steps, and without the parts of a whole run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_plan_runs_without_the_planner_the_yaml_the_lock_and_ray(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kernel_alone.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "root"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[0, 2, 4, 6, 8] 3", "[]"]
