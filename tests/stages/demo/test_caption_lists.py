"""The demo world with several alt-texts per web image."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.tasks.caption_lists import CaptionListWorld
from vlpipe.stages.ground_truth.filter import scene_of


def test_each_image_has_right_captions_that_differ(tmp_path: Path) -> None:
    world = CaptionListWorld(num_web=40, num_human=1, num_eval=1, wrong=0, two_things=0.5, captions=3)
    made = run_gather(world, [], tmp_path, say=lambda _: None).artifacts
    listed = pq.read_table(made / "web.parquet").to_pylist()
    truth = {row["url"]: row for row in pq.read_table(made / "truth.parquet").to_pylist()}
    for row in listed:
        known = truth[row["url"]]
        assert row["text"][0] == known["text"]
        assert len(row["text"]) == 3
        assert all(right(text, scene_of(known)) for text in row["text"])
    assert sum(len(set(row["text"])) > 1 for row in listed) > 0.8 * len(listed)
