"""What UNIMO's corruptors and maker do: overlapping regions, split texts, rewrites of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models.objectives.texts.next_words import NextWords
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.loading.corruptors.mask_overlapping import MaskOverlapping, overlaps
from vlpipe.stages.loading.corruptors.split_text import SplitText
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.language.variants import Variants
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.scene_graphs.rewrites import REWRITES

# the first two overlap by 1/3, the second and third by 3/5, the last is apart
BOXES = np.array([[0, 0, 0.4, 1], [0.2, 0, 0.6, 1], [0.3, 0, 0.7, 1], [0.8, 0, 1, 1]], np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red dog on the sofa and two blue cats"] * 3, 100)


def test_overlaps_by_hand() -> None:
    third, three_fifths, seventh = 1 / 3, 3 / 5, 0.1 / 0.7
    wanted = [
        [1, third, seventh, 0],
        [third, 1, three_fifths, 0],
        [seventh, three_fifths, 1, 0],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(overlaps(BOXES), wanted, atol=1e-6)
    assert overlaps(np.zeros((1, 4), np.float32)).tolist() == [[0]]


@pytest.mark.parametrize(("iou", "near"), [(0.3, {(0, 1), (1, 2)}), (0.4, {(1, 2)}), (0.7, set())])
def test_regions_that_overlap_a_chosen_one_are_masked(iou: float, near: set[tuple[int, int]]) -> None:
    feats = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    corruptor = MaskOverlapping(rate=0.2, iou=iou)
    alone = MaskOverlapping(rate=0.2, iou=0.99)
    num = 0
    for seed in range(200):
        made = []
        for one in (corruptor, alone):
            samples: Any = [{"regions": {"data": feats, "extra/box": BOXES}}]
            found = one(samples, lambda k, seed=seed: np.random.default_rng((seed, k)), {})
            made.append(found[0]["regions"])
        masked, chosen = (set(np.flatnonzero(one["target/masked"]).tolist()) for one in made)
        pairs = near | {(b, a) for a, b in near}
        assert masked == chosen | {b for a, b in pairs if a in chosen}
        assert (made[0]["data"] == np.where(made[0]["target/masked"][:, None], 0, feats)).all()
        assert (made[0]["target/feat"] == feats).all()
        num += len(chosen) > 0
    assert num == 200  # at least one of each image


def test_a_text_is_split(tokenizer: Tokenizer) -> None:
    maker = Text(tokenizer=tokenizer, max_length=30)
    item = maker(None, "a red dog on the sofa", np.random.default_rng(0))
    ids, prefixes = item["data"], set()
    wanted_of_none = np.full(len(ids), IGNORE)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        (found,) = SplitText(share=0.5)([{"text": dict(item)}], lambda k, rng=rng: rng, {"text": maker})
        one = found["text"]
        prefix = int(one["target/prefix"])
        prefixes.add(prefix)
        assert (one["data"] == ids).all()
        wanted = [ids[at + 1] if at >= prefix - 1 else IGNORE for at in range(len(ids) - 1)]
        assert one["target/rest"].tolist() == [*wanted, IGNORE]
        stream = maker.collate([one, item | {"target/rest": wanted_of_none, "target/prefix": np.int64(1)}])
        chosen = stream.chosen(NextWords.TARGET, torch.zeros(0))  # what the loader has found
        assert chosen.tolist() == list(range(prefix - 1, len(ids) - 1))
    assert prefixes == set(range(1, len(ids) // 2 + 1))
    with pytest.raises(ValueError, match="share must be at least 0 and below 1, got 1"):
        SplitText(share=1)


def row_of() -> Row:
    texts = ["a red dog", "two cats"]
    rewrites = [[{"text": "a blue dog", "kind": "attributes"}, {"text": "a red sofa", "kind": "objects"}], []]
    columns = {
        "texts": pa.array([[text(one, "web") for one in texts]], TEXTS)[0],
        "rewrites": pa.array([rewrites], REWRITES)[0],
        "back": pa.array([[["one red dog"], None]], pa.list_(pa.list_(pa.string())))[0],
    }
    return Row("r", 1, texts, columns)


def test_variants_of_a_text(tokenizer: Tokenizer) -> None:
    maker = Variants(tokenizer=tokenizer, max_length=8, positives={"back": 1}, negatives={"rewrites": 3})
    assert maker.COLUMNS == ("texts", "back", "rewrites")
    assert Variants.COLUMNS == ("texts",)
    rng = np.random.default_rng(0)
    stream = maker.collate([maker(row_of(), one, rng) for one in ("a red dog", "two cats")])
    assert stream.extra["there"].tolist() == [[True] * 4 + [False], [True] + [False] * 4]
    assert stream.extra["positive"].tolist() == [[True, True, False, False, False]] * 2
    said = [tokenizer.decode(ids.tolist()) for ids in stream.data[0]]
    assert said[:2] == ["a red dog", "one red dog"]
    assert set(said[2:]) == {"a blue dog", "a red sofa", ""}
    lengths = stream.extra["tokens"].sum(-1)
    assert stream.data.shape[2] == int(lengths.max()) < 9
    assert lengths[0, -1] == 0
    assert ((stream.data != tokenizer.pad) == stream.extra["tokens"]).all()


def test_what_is_wrong_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="wanted at least one text of each column"):
        Variants(tokenizer=tokenizer, own=False)
    row = row_of()
    row.columns["rewrites"] = pa.array([[[]]], REWRITES)[0]
    maker = Variants(tokenizer=tokenizer, negatives={"rewrites": 1})
    with pytest.raises(VlpipeError, match="row r has 2 texts and 1 values of 'rewrites'"):
        maker(row, "a red dog", np.random.default_rng(0))
    with pytest.raises(ValueError, match="iou must be at least 0 and below 1, got 1"):
        MaskOverlapping(iou=1.0)
