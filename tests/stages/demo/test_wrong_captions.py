"""Captions with one attribute wrong, judged by the scenes that the right ones are of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.demo.captions import web_caption
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import draw_scene
from vlpipe.stages.demo.tasks.wrong_captions import WrongCaptions, wrong_captions


def test_each_differs_in_one_attribute_and_is_wrong() -> None:
    num = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, 0.6)
        caption = web_caption(scene, rng)
        found = wrong_captions(caption)
        assert len(set(found)) == len(found) >= 7 + 4 - 2
        for other in found:
            different = [(a, b) for a, b in zip(caption.split(), other.split(), strict=True) if a != b]
            assert len([pair for pair in different if not {*pair} <= {"a", "an"}]) == 1
            assert not right(other, scene)
            num += 1
    assert num > 600


def test_the_column_is_as_neighbours_are() -> None:
    dropped = {**text("a red ring", "web"), "kept": False}
    rows = [{"id": "0", "url": "", "texts": [text("a red ring", "web"), dropped]}]
    (row,) = run_map(WrongCaptions(), pa.Table.from_pylist(rows, LISTED)).table.to_pylist()
    first, second = row["neighbours"]
    assert second is None
    assert [one["text"] for one in first][:2] == ["a green ring", "a blue ring"]
    assert len(first) == 7 + 4
