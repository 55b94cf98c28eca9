from __future__ import annotations

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
