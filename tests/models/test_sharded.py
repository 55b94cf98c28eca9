"""Two ranks of FSDP2, and torch.compile, give each system the loss and the gradients of the plain module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlpipe.models import systems

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp2_and_compile_change_nothing(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=500) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]
    rooms = [path for path in Path(systems.__path__[0]).iterdir() if not path.name.startswith("_")]
    shipped = {path.stem for room in rooms for path in room.iterdir() if not path.name.startswith("_")}
    encoders = {"mobilenet_v2"}  # no objective trains one alone
    assert set(said[0][0].split()) == shipped - encoders
