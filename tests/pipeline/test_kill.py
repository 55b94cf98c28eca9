"""Whatever is killed, and whenever: the next run leaves the same bytes."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_driver_killed_at_enumerated_points_leaves_the_same_bytes(tmp_path: Path) -> None:
    """Every 41st of about a thousand points; `python tests/pipeline/kill_points.py FOLDER 1` takes them all."""
    command = [sys.executable, "kill_points.py", str(tmp_path), "41"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 10
