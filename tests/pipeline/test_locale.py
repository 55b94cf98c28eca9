"""What is written does not depend on the locale: Slurm and containers often have LC_ALL=C, or Latin-1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_lines_of_a_step_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = (
        "from vlpipe.pipeline.engine.worker.captured_output import say_to\n"
        "from vlpipe.pipeline.storage.store import Store\n"
        f"say_to(Store({str(tmp_path)!r}), 'step')('caf\\u00e9 \\udce9')\n"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert (tmp_path / "step/_log/said.txt").read_text(encoding="utf-8") == "caf\u00e9 \\udce9\n"
