from __future__ import annotations

import time
from pathlib import Path

from vlpipe.stages.train.progress import Progress, following


def test_lines_written_inside_the_block_are_said_whole_and_once(tmp_path: Path) -> None:
    path, lines = tmp_path / "progress.log", []
    path.write_text("from an attempt before\n")
    with following(path, lines.append):
        progress = Progress(path, step=4, num_steps=10, batch_size=8)
        progress.say("one")
        progress.report(6, {"loss": 1.23456, "lr": 3e-4})
    assert lines[0] == "one"
    assert lines[1].startswith("step 6/10  loss 1.235  lr 0.0003  ")
    assert lines[1].endswith(" s left")
    assert len(lines) == 2


def test_a_line_states_the_rate_and_its_share_of_the_peak(tmp_path: Path) -> None:
    path = tmp_path / "progress.log"
    progress = Progress(path, step=4, num_steps=10, batch_size=8, peak_flops=8e12)
    progress.since_s = time.monotonic() - 1000
    progress.report(6, {"loss": 1.0}, flops=2e15)
    assert "  2 TFLOP/s  MFU 25.0%  " in path.read_text()
    Progress(path, step=4, num_steps=10, batch_size=8).report(6, {"loss": 1.0}, flops=2e9)
    assert "TFLOP/s  " in path.read_text().splitlines()[1]
    assert "MFU" not in path.read_text().splitlines()[1]
