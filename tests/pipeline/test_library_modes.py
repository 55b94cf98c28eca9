"""Modes of MKL and OpenMP are set before a plan computes anything: each library reads its own once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOY = """
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass

from vlpipe.pipeline.stage import MapStage


@dataclass(frozen=True, kw_only=True)
class Says(MapStage):
    def preflight(self):
        modes = [os.environ.get(name) for name in ("MKL_CBWR", "GOMP_SPINCOUNT")]
        return [f"modes {modes}, torch {'torch' in sys.modules}"]

    @contextmanager
    def open(self):
        yield lambda rows: rows
"""


def modes(tmp_path: Path, **given: str) -> str:
    """Returns what `plan` prints of a stage that says the modes, started with the variables `given`."""
    (tmp_path / "says.py").write_text(TOY)
    (tmp_path / "w.yaml").write_text(
        'name: w\nsteps:\n  list: {use: "demo.world:World", num_web: 1, num_human: 1, num_eval: 1}\n'
        '  says: {use: "says:Says", from: list}\n'
    )
    names = ("MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "plan", "w.yaml", "--root", "root"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_they_are_set_when_stages_are_planned(tmp_path: Path) -> None:
    assert "says: modes ['AUTO', '1000'], torch False" in modes(tmp_path)


def test_a_users_own_are_kept(tmp_path: Path) -> None:
    assert "modes ['COMPATIBLE', None]" in modes(tmp_path, MKL_CBWR="COMPATIBLE", OMP_WAIT_POLICY="active")
