"""The layout `correlated`: objects that tell their neighbours, in the middle of their ninths."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.correlated import draw_correlated
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, SIZE_PX, render
from vlpipe.stages.demo.world import World


def test_shapes_go_on_by_row_and_colours_by_column() -> None:
    colours, middles = list(COLOURS), Counter[str]()
    for seed in range(100):
        things = draw_correlated(np.random.default_rng(seed)).things
        for place, thing in enumerate(things):
            row, column = divmod(place, 3)
            right, below = things[3 * row + (column + 1) % 3], things[3 * ((row + 1) % 3) + column]
            assert right.shape == thing.shape
            assert below.colour == thing.colour
            if column < 2:
                assert colours.index(right.colour) == (colours.index(thing.colour) + 1) % 8
            if row < 2:
                assert SHAPES.index(below.shape) == (SHAPES.index(thing.shape) + 1) % 5
        middles[things[4].shape] += 1
    assert set(middles) == set(SHAPES)


def test_objects_stay_within_their_ninths() -> None:
    """The lines between ninths have the background's colour, up to light and noise."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = draw_correlated(rng)
        pixels = np.asarray(render(scene, rng)).astype(int)
        edges = pixels[[SIZE_PX // 3, 2 * SIZE_PX // 3]]
        assert np.abs(edges - np.median(edges, axis=(0, 1))).max() < 80
        for thing in scene.things:
            assert thing.x // (1 / 3) == (thing.x + thing.w) // (1 / 3)
            assert thing.y // (1 / 3) == (thing.y + thing.h) // (1 / 3)


def test_texts_and_truth_are_of_the_object_in_the_middle(tmp_path: Path) -> None:
    stage = World(layout="correlated", num_web=6, num_human=20, num_eval=1)
    found = run_gather(stage, [], tmp_path)
    folder = found.artifacts
    texts = json.loads((folder / "human_train.json").read_text())["annotations"]
    for one in texts:
        said = one["caption"].split()
        assert not {"top", "bottom", "left", "right", "upper", "lower"} & set(said)
    rows = pq.read_table(folder / "truth.parquet").to_pylist()
    assert all(len(row["objects"]) == 1 for row in rows)
    assert {(row["objects"][0]["row"], row["objects"][0]["column"]) for row in rows} == {("middle", "middle")}
    assert World(layout="correlated", two_things=0.5).preflight() == [
        "two_things: scenes of layout correlated have nine objects, got 0.5"
    ]
    assert World(two_things=0.5).preflight() == []
