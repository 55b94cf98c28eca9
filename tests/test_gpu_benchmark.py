"""benchmarks/gpu.py, small, on the CPU, without the packages that a bare machine with a GPU lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
# Not found, in the program and in those that it starts; vlpipe itself is not installed either.
MISSING = ("ray", "pycurl", "faiss", "typer", "rich", "simplejpeg", "duckdb", "av")
HIDE = f"""
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    hidden = name == "vlpipe" or name.partition(".")[0] in {MISSING!r}
    return None if hidden else real(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
SECTIONS = ("step", "loader", "inference", "dedup", "resume", "compiled")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 80 CPU seconds, in five processes
def test_it_runs_on_a_bare_machine(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "SMALL": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["machine"]["jpeg"].startswith("Pillow")
    rows = {name: found["sections"][name] for name in SECTIONS}
    assert all(rows.values())
    assert all(any("gflop_per_sample" in row for row in rows[name]) for name in ("step", "compiled"))
    assert any("at_hand_over_fed" in row for row in rows["loader"])
    assert any("greedy_times_faster" in row for row in rows["inference"])
    assert [row["same_bytes"] for row in rows["resume"]] == [True, True]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page.count("\n## ") == len(SECTIONS)
    assert "the figures mean nothing" in page


@pytest.mark.slow
def test_the_hidden_packages_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    for name in ("vlpipe.models.folder", *MISSING):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"No module named '{name.partition('.')[0]}'" in done.stderr
