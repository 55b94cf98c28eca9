"""Two ranks of FSDP2, and torch.compile, give each system the loss and the gradients of the plain module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.ranks import run
from vlpipe.models import systems

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp2_and_compile_change_nothing(tmp_path: Path) -> None:
    said = run(tmp_path, 2, [WORKER, tmp_path], wait_s=500)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]
    rooms = [path for path in Path(systems.__path__[0]).iterdir() if not path.name.startswith("_")]
    shipped = {path.stem for room in rooms for path in room.iterdir() if not path.name.startswith("_")}
    encoders = {"mobilenet_v2"}  # no objective trains one alone
    assert set(re.findall(r"^\w+$", said[0], re.MULTILINE)) == shipped - encoders
