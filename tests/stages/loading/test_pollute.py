"""Captions with tags, and triples of which one part is another picture's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.corruptors.image_text.pollute import Pollute, ReplaceTags
from vlpipe.stages.loading.makers.tags import CaptionAndTags
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

CAPTIONS = ["a red circle", "a blue ring", "one green square", "pink cross"]
TAGS = [["circle", "circle"], ["ring"], ["square"], ["cross", "ring"]]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS, *(" ".join(tags) for tags in TAGS)] * 3, 120)


def row(k: int, tags: Any = "own") -> Row:
    column = pa.array([TAGS[k] if tags == "own" else tags], pa.list_(pa.string()))
    return Row(f"row{k}", k, [CAPTIONS[k]], {"region_tags": column[0]})


def said(maker: CaptionAndTags, item: Any) -> tuple[str, str]:
    ids, segment = item["data"], item["extra/segment"]
    return maker.tokenizer.decode(ids[segment == 0]), maker.tokenizer.decode(ids[segment == 1])


def samples(maker: CaptionAndTags, num: int) -> list[Any]:
    return [{"text": maker(row(k % 4), CAPTIONS[k % 4], RNG)} for k in range(num)]


def test_a_caption_and_its_tags(tokenizer: Tokenizer) -> None:
    maker = CaptionAndTags(tokenizer=tokenizer)
    assert said(maker, maker(row(0), CAPTIONS[0], RNG)) == ("a red circle", "circle circle")
    once = CaptionAndTags(tokenizer=tokenizer, distinct=True)
    assert said(once, once(row(0), CAPTIONS[0], RNG)) == ("a red circle", "circle")
    first = CaptionAndTags(tokenizer=tokenizer, max_tags=1)
    assert said(first, first(row(3), CAPTIONS[3], RNG)) == ("pink cross", "cross")
    assert said(maker, maker(row(0, []), CAPTIONS[0], RNG)) == ("a red circle", "")
    with pytest.raises(VlpipeError, match="row row0 has null region_tags"):
        maker(row(0, None), CAPTIONS[0], RNG)


def test_rates_and_truth_of_polluted_triples(tokenizer: Tokenizer) -> None:
    maker, num = CaptionAndTags(tokenizer=tokenizer), 800
    given = samples(maker, num)
    found = Pollute()(
        [dict(sample) for sample in given], lambda k: np.random.default_rng((3, k)), {"text": maker}
    )
    kinds = np.array([sample["text"]["target/polluted"] for sample in found])
    shares = np.bincount(kinds, minlength=3) / num
    assert np.abs(shares - [0.5, 0.25, 0.25]).max() < 4 * (0.25 / num) ** 0.5
    for old, new, kind in zip(given, found, kinds, strict=True):
        before, after = said(maker, old["text"]), said(maker, new["text"])
        changed = [a != b for a, b in zip(before, after, strict=True)]
        assert changed == [kind == 2, kind == 1]  # the caption, the tags
        assert new["text"]["target/match"] == (kind == 0)


def test_without_another_picture_a_triple_stays_right(tokenizer: Tokenizer) -> None:
    maker = CaptionAndTags(tokenizer=tokenizer)
    same = [{"text": maker(row(1), CAPTIONS[1], RNG)} for _ in range(3)]
    for corruptor in (Pollute(tags=1.0, caption=0.0), ReplaceTags(by="another")):
        found = corruptor([dict(one) for one in same], lambda k: np.random.default_rng(k), {"text": maker})
        assert [said(maker, one["text"]) for one in found] == [("a blue ring", "ring")] * 3
    assert [one["text"].get("target/match", 1) for one in found] == [1, 1, 1]


def test_replaced_tags_and_refusals(tokenizer: Tokenizer) -> None:
    maker, given = CaptionAndTags(tokenizer=tokenizer), None
    for by in ("none", "another"):
        given = samples(maker, 4)
        found = ReplaceTags(by=by)(given, lambda k: np.random.default_rng(k), {"text": maker})  # type: ignore[arg-type]
        for k, sample in enumerate(found):
            caption, tags = said(maker, sample["text"])
            assert caption == CAPTIONS[k]
            assert (tags == "") if by == "none" else (tags and tags != " ".join(TAGS[k]))
    with pytest.raises(ValueError, match="tags and caption must be at most 1 together"):
        Pollute(tags=0.6, caption=0.5)
    with pytest.raises(
        ValueError, match="pollute: the stream 'text' needs the maker tags:CaptionAndTags, but has Text"
    ):
        Pollute()([], lambda k: RNG, {"text": Text(tokenizer=tokenizer)})
