"""Whatever is killed, and whenever: the next run leaves the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import planned, rejects, rows, run

HERE = Path(__file__).parent


def test_a_driver_killed_at_enumerated_points_leaves_the_same_bytes(tmp_path: Path) -> None:
    """Every 41st of about a thousand points; `python tests/pipeline/kill_points.py FOLDER 1` takes them all."""
    command = [sys.executable, "kill_points.py", str(tmp_path), "41"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 10


@pytest.mark.slow
def test_a_row_that_kills_a_local_run_is_found_and_named_by_the_third(tmp_path: Path) -> None:
    """A death may be anyone's doing; after the second amid one shard its rows are run in a process of their own."""
    text = """
steps:
  a: {use: "toys:Numbers", num_rows: 12, shard_rows: 6}
  b: {use: "toys:Breaks", from: a, kills: [4], max_reject_rate: 0.2}
"""
    planned(tmp_path, text)
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(tmp_path / "w.yaml"), "--local"]
    command += ["--root", str(tmp_path / "root")]
    for _ in range(2):
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    steps = run(tmp_path, text)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(12) if n != 4]
    assert [(r["id"], r["kind"], r["why"]) for r in rejects(tmp_path, steps["b"])] == [
        ("id4", "fault", "killed_worker")
    ]
    assert not list((tmp_path / "root").glob("*/work"))
