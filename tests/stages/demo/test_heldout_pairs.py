"""Held-out captions that are right for other held-out images too, and retrieval that knows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.heldout_pairs import PAIRS, HeldoutPairs
from vlpipe.stages.demo.world import World
from vlpipe.stages.evaluate.nearest import Relevance, both_ways
from vlpipe.stages.evaluate.retrieval import hits

SIZES = {"seed": 3, "num_web": 4, "num_human": 2, "num_eval": 60, "captions_per_image": 3}


@pytest.mark.parametrize("two_things", [0.0, 0.5])
def test_each_pair_is_right_and_each_right_pair_is_there(tmp_path: Path, two_things: float) -> None:
    world = World(**SIZES, two_things=two_things)  # type: ignore[arg-type]
    made = run_gather(world, [], tmp_path / "world").artifacts
    listed = json.loads((made / "human_eval.json").read_text())
    done = run_gather(HeldoutPairs(**SIZES, two_things=two_things), [], tmp_path / "pairs")  # type: ignore[arg-type]
    pairs = pq.read_table(done.artifacts / "pairs.parquet")
    assert pairs.schema.equals(PAIRS)
    found = set(zip(pairs["url"].to_pylist(), pairs["text"].to_pylist(), strict=True))
    assert len(found) == len(pairs)
    names = {one["id"]: one["file_name"] for one in listed["images"]}
    own = {(names[one["image_id"]], one["caption"]) for one in listed["annotations"]}
    scenes = {one.file_name: one.scene for one in world.human("human_eval", 60, stream=2)}
    texts = {text for _, text in own}
    assert found == {(name, text) for name, scene in scenes.items() for text in texts if right(text, scene)}
    assert own < found  # captions of people are right, and some for other images, too
    results = {row["name"]: row for row in done.table.to_pylist()}
    assert results["right_images_per_caption"]["value"] == pytest.approx(len(found) / len(texts))
    assert results["right_captions_per_image"]["num_rows"] == 60


def test_a_caption_that_is_right_for_another_image_finds_it() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0, 0.9, 0], [0, 1, 0], [0, 0, 1]], np.float32)  # the first reads as if of image 1
    for more, wanted in (
        ([], ([False, True, True], [False, True, True])),
        ([(1, "a")], ([False, True, True], [True, True, True])),
        ([(0, "unknown")], ([False, True, True], [False, True, True])),
    ):
        relevance = Relevance(np.arange(3), ["a", "b", "c"], more)
        of_images, of_texts = both_ways(images, texts, 2, relevance)
        found = hits("", of_images.order, of_texts.order, relevance)
        assert (found["tr@1"].tolist(), found["ir@1"].tolist()) == wanted
