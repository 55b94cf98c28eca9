"""Masked nodes of scene graphs: which tokens they are, how many, and what stays in sight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.loading.corruptors.scene_graphs.mask import MaskSceneGraph, chosen_nodes
from vlpipe.stages.loading.makers.base import IGNORE, Sample
from vlpipe.stages.loading.makers.language.scene_text import SceneText
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.scene_graphs.parse import SceneGraphs

CAPTION = "a small violet rhinoceros on a big green elephant"
NODES = {
    "object": ["rhinoceros", "elephant"],
    "attribute": ["small", "violet", "big", "green"],
    "relation": ["on"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """So few tokens that a rhinoceros is several."""
    return Tokenizer.train([CAPTION, "a small big green violet on " * 5], 90)


def row_of(*texts: str) -> Row:
    table = pa.table({"id": ["r"], "texts": pa.array([[text(t, "web") for t in texts]], TEXTS)})
    found = run_map(SceneGraphs(), table).table
    return Row("r", 1, list(texts), {name: found[name][0] for name in ("texts", "scene_graphs")})


def samples(maker: Text, num: int, caption: str = CAPTION) -> list[Sample]:
    row, rng = row_of("another text", caption), np.random.default_rng(0)
    return [{"text": maker(row, caption, rng)} for _ in range(num)]


def masked(tokenizer: Tokenizer, corruptor: MaskSceneGraph, num: int) -> list[dict[str, Any]]:
    maker = SceneText(tokenizer=tokenizer, max_length=40)
    found = corruptor(samples(maker, num), lambda k: np.random.default_rng((3, k)), {"text": maker})
    return [one["text"] for one in found]


def said(tokenizer: Tokenizer, item: dict[str, Any], target: str) -> list[str]:
    """The words, whole or in part, that a target has."""
    ids, words = item[f"target/{target}"], item["words"]
    return [
        tokenizer.decode(ids[(words == word) & (ids != IGNORE)].tolist())
        for word in np.unique(words[ids != IGNORE])
    ]


def test_targets_are_whole_nodes_of_their_kind(tokenizer: Tokenizer) -> None:
    counts = dict.fromkeys(NODES, 0)
    for item in masked(tokenizer, MaskSceneGraph(split=(1, 0)), 600):
        objects = said(tokenizer, item, "object")
        for kind, words in NODES.items():
            found = said(tokenizer, item, kind)
            assert set(found) <= set(words)
            counts[kind] += len(found)
        targets = [item[f"target/{name}"] != IGNORE for name in (*NODES, "ids")]
        assert (np.sum(targets, 0) <= 1).all()  # no token is of two losses
        assert ((item["data"] == tokenizer.mask) == np.any(targets, 0)).all()
        if said(tokenizer, item, "relation"):
            assert not objects  # both stay in sight
        for attribute, thing in (("small", "rhinoceros"), ("violet", "rhinoceros"), ("big", "elephant")):
            if attribute in said(tokenizer, item, "attribute"):
                assert thing not in objects
    for kind, rate in (("attribute", 0.3), ("relation", 0.3), ("object", 0.3 * 0.7**3)):
        num = 600 * len(NODES[kind])
        assert abs(counts[kind] - num * rate) < 4 * math.sqrt(num * rate), kind


def test_random_places_are_as_many(tokenizer: Tokenizer) -> None:
    """The control masks as many tokens of each text, of words in no node, too, and records them in one target."""
    nodes = masked(tokenizer, MaskSceneGraph(split=(1, 0)), 300)
    control = masked(tokenizer, MaskSceneGraph(split=(1, 0), at_random=True), 300)
    num = [int(sum((i["data"] == tokenizer.mask).sum() for i in items)) for items in (nodes, control)]
    assert abs(num[0] - num[1]) < 4 * math.sqrt(num[0])
    assert "target/object" not in control[0]
    assert "a" in {word for item in control for word in said(tokenizer, item, "ids")}
    assert all(((i["target/ids"] != IGNORE) == (i["data"] == tokenizer.mask)).all() for i in control)


def test_one_kind_alone_as_masked_words(tokenizer: Tokenizer) -> None:
    items = masked(tokenizer, MaskSceneGraph(nodes=1, kinds=("relation",), joined=True, split=(1, 0)), 3)
    assert [said(tokenizer, item, "ids") for item in items] == [["on"]] * 3


def test_nodes_that_others_need_are_kept() -> None:
    kind, needs = np.array([0, 0, 1, 2]), np.array([[-1, -1], [-1, -1], [0, -1], [1, 0]])
    every = ("object", "attribute", "relation")
    assert chosen_nodes(kind, needs, 1.0, every, np.random.default_rng(0)).tolist() == [2, 3]
    assert chosen_nodes(kind, needs, 1.0, ("object",), np.random.default_rng(0)).tolist() == [0, 1]


def test_a_text_that_is_cut(tokenizer: Tokenizer) -> None:
    maker = SceneText(tokenizer=tokenizer, max_length=5)
    item = maker(row_of(CAPTION), CAPTION, np.random.default_rng(0))
    assert len(item["node"]) == 5
    assert item["node"][[0, 1, -1]].tolist() == [-1, -1, -1]
    assert item["node_kind"].tolist() == [0, 0, 1, 1, 1, 1, 2]


def test_what_is_missing_is_named(tokenizer: Tokenizer) -> None:
    plain = Text(tokenizer=tokenizer, max_length=40)
    with pytest.raises(
        VlpipeError, match=r'no scene graphs; set streams\.text\.use: "language\.scene_text:SceneText"'
    ):
        MaskSceneGraph()(samples(plain, 1), lambda k: np.random.default_rng(k), {"text": plain})
    maker = SceneText(tokenizer=tokenizer, max_length=40)
    with pytest.raises(VlpipeError, match="a text of row r has no scene graph"):
        maker(row_of("other"), CAPTION, np.random.default_rng(0))
    with pytest.raises(ValueError, match="kinds must be of object, attribute, relation"):
        MaskSceneGraph(kinds=("colour",))
