"""The perfect filter and the perfect captioner, on rows worked out by hand and on random scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import Scene, draw_scene
from vlpipe.stages.demo.world import TRUTH, Listing, _truth_row
from vlpipe.stages.ground_truth.caption import TrueCaption
from vlpipe.stages.ground_truth.decide import TruthFilter
from vlpipe.stages.ground_truth.filter import read_truth, scene_of

Texts = list[dict[str, Any]]
RED = {"shape": "circle", "colour": "red", "size": "small", "row": "top", "column": "left"}
RED_CIRCLE = {"ground": "grey", "objects": [RED | dict.fromkeys("xywh", 0.2)]}


def truth_file(folder: Path, rows: list[dict[str, Any]]) -> File:
    pq.write_table(pa.Table.from_pylist(rows, TRUTH), folder / "truth.parquet")
    return File(path=str(folder / "truth.parquet"))


def web(folder: Path, **said: tuple[str, bool]) -> File:
    """A truth file of images of a small red circle on grey: url -> (web text, whether it is right)."""
    rows = [{"url": url, "text": t, "right": ok} | RED_CIRCLE for url, (t, ok) in said.items()]
    return truth_file(folder, rows)


def rows_of(texts: dict[str, Texts | None]) -> pa.Table:
    return pa.table([list(texts), list(texts), list(texts.values())], schema=LISTED)


def texts_after(stage: TruthFilter | TrueCaption, texts: dict[str, Texts | None]) -> dict[str, Texts]:
    out = run_map(stage, rows_of(texts)).table
    return dict(zip(out["id"].to_pylist(), out["texts"].to_pylist(), strict=True))


def test_right_texts_are_kept_and_wrong_ones_dropped(tmp_path: Path) -> None:
    truth = web(tmp_path, a=("a red circle", True), b=("a blue circle", False), c=("a disc", True))
    empty = text("", "synth", kept=False, why="empty")
    human = text("anything", "human")
    found = texts_after(
        TruthFilter(truth=truth),
        {
            "a": [text("a red circle", "web"), text("a large red circle", "synth"), human],
            "b": [text("a blue circle", "web", score=0.9, kept=True), text("a small disc", "synth")],
            "c": [
                text("a disc", "web", score=0.1, kept=False, why="not_matched"),
                text("a red circle", "synth", kept=False, why="at_random"),
                empty,
            ],
        },
    )
    assert found == {
        "a": [
            text("a red circle", "web", kept=True),
            text("a large red circle", "synth", kept=False, why="wrong"),
            human,
        ],
        "b": [
            text("a blue circle", "web", kept=False, why="wrong"),
            text("a small disc", "synth", kept=True),
        ],
        "c": [text("a disc", "web", kept=True), text("a red circle", "synth", kept=True), empty],
    }


def test_only_the_given_sources_are_decided(tmp_path: Path) -> None:
    truth = web(tmp_path, a=("a blue circle", False))
    before = [text("a blue circle", "web"), text("a blue circle", "synth")]
    found = texts_after(TruthFilter(truth=truth, sources=("web",)), {"a": before})
    assert [t["kept"] for t in found["a"]] == [False, None]


def test_a_true_caption_takes_the_place_of_each_synthetic_text(tmp_path: Path) -> None:
    truth = web(tmp_path, a=("x", False), b=("x", False), c=("x", False))
    model = text("two dogs", "synth", model="d", score=0.2, kept=False, why="not_matched")
    found = texts_after(
        TrueCaption(truth=truth), {"a": [model, text("x", "web"), model], "b": [text("x", "web")], "c": None}
    )
    assert [t["source"] for t in found["a"]] == ["synth", "web", "synth"]
    assert [t["source"] for t in found["b"]] == ["web", "synth"]
    assert [t["source"] for t in found["c"]] == ["synth"]
    (scene,) = {scene_of(row) for row in read_truth(truth).values()}
    new = [t for ts in found.values() for t in ts if t["source"] == "synth"]
    assert all(right(t["text"], scene) and t == text(t["text"], "synth") for t in new)
    assert found["b"][0] == text("x", "web")


def test_true_captions_are_right_of_every_scene_and_depend_on_seed_and_row_alone(tmp_path: Path) -> None:
    scenes: dict[str, Scene] = {f"r{n}": draw_scene(np.random.default_rng(n), 0.5) for n in range(150)}
    truth = truth_file(
        tmp_path, [_truth_row(url, "x", "junk", Listing(b"", "PNG", scene)) for url, scene in scenes.items()]
    )
    rows: dict[str, Texts | None] = {url: [] for url in scenes}
    found = texts_after(TrueCaption(truth=truth), rows)
    assert all(right(ts[0]["text"], scenes[url]) for url, ts in found.items())
    backwards = texts_after(TrueCaption(truth=truth), dict(reversed(rows.items())))
    assert backwards == found
    assert texts_after(TrueCaption(truth=truth), {"r7": []}) == {"r7": found["r7"]}
    assert texts_after(TrueCaption(truth=truth, seed=1), rows) != found


@pytest.mark.parametrize("stage", [TruthFilter, TrueCaption])
def test_rows_of_another_world_are_an_error(tmp_path: Path, stage: type[TruthFilter | TrueCaption]) -> None:
    with pytest.raises(
        VlpipeError, match=r"the ground-truth file has no row for z; set `truth` to truth.parquet"
    ):
        texts_after(stage(truth=web(tmp_path, a=("x", True))), {"z": [text("x", "web")]})
