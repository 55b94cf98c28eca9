"""MKL's reproducible mode is set before a plan computes anything: MKL reads it at the first matrix product of a process."""

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
        return [f"mode {os.environ.get('MKL_CBWR')}, torch {'torch' in sys.modules}"]

    @contextmanager
    def open(self):
        yield lambda rows: rows
"""


def test_it_is_set_when_stages_are_planned(tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(TOY)
    (tmp_path / "w.yaml").write_text(
        'name: w\nsteps:\n  list: {use: "demo.world:World", num_web: 1, num_human: 1, num_eval: 1}\n'
        '  says: {use: "says:Says", from: list}\n'
    )
    env = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "plan", "w.yaml", "--root", "root"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "says: mode AUTO, torch False" in done.stdout + done.stderr
