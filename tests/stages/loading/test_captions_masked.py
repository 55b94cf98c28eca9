"""A fixed share of masked words, and which attention mask a text has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.corruptors.image_text.left_to_right import LeftToRight
from vlpipe.stages.loading.corruptors.image_text.mask_share import MaskShare
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.text import Text

WORDS = [
    *("red", "green", "blue", "pink", "ring", "cross", "square", "circle", "above", "below"),
    *("left", "right", "near", "far", "small", "large", "one", "two"),
]


@pytest.fixture(scope="module")
def maker() -> Text:
    return Text(tokenizer=Tokenizer.train([" ".join(WORDS)] * 9, 200), max_length=30)


def masked(maker: Text, corruptor: MaskShare, num_words: int, num: int) -> list[Any]:
    text = " ".join(WORDS[:num_words])
    samples = [{"text": maker(None, text, np.random.default_rng(0))} for _ in range(num)]
    return [
        one["text"] for one in corruptor(samples, lambda k: np.random.default_rng((5, k)), {"text": maker})
    ]


@pytest.mark.parametrize(("words", "wanted"), [(2, 1), (9, 2), (12, 2), (16, 3), (18, 3)])
def test_how_many_are_masked(maker: Text, words: int, wanted: int) -> None:
    """min(3, max(1, round(0.15 x (words + the end)))): 18 words and the end are 2.85."""
    for item in masked(maker, MaskShare(), words, 20):
        chosen = np.flatnonzero(item["target/ids"] != IGNORE)
        assert len(chosen) == wanted
        assert 0 not in chosen
    assert all(
        sum(item["target/ids"] != IGNORE) == 9 for item in masked(maker, MaskShare(rate=0.5, most=9), 18, 5)
    )


def test_special_tokens_count_as_in_berts_code(maker: Text) -> None:
    """round(0.15 x 16) = 2 of 16 words, and round(0.15 x 18) = 3 with [CLS] and [SEP], which are not masked."""
    for count_special, wanted in ((False, 2), (True, 3)):
        for item in masked(maker, MaskShare(most=20, end=False, count_special=count_special), 16, 20):
            chosen = item["target/ids"] != IGNORE
            assert chosen.sum() == wanted
            assert not chosen[[0, -1]].any()
    assert all(
        sum(item["target/ids"] != IGNORE) == 1
        for item in masked(maker, MaskShare(rate=0.9, most=20, end=False, count_special=True), 1, 3)
    )


def test_the_end_is_masked_like_the_words_and_most_become_the_mask(maker: Text) -> None:
    found, num = masked(maker, MaskShare(), 9, 1000), 1000
    chosen = np.array([item["target/ids"] != IGNORE for item in found])
    shares = chosen.mean(0)  # 2 of 10 places, [CLS] never
    assert shares[0] == 0
    assert np.abs(shares[1:] - 0.2).max() < 4 * (0.16 / num) ** 0.5
    ids = np.array([item["data"] for item in found])
    tokenizer = maker.tokenizer
    plain = np.asarray(maker(None, " ".join(WORDS[:9]), np.random.default_rng(0))["data"])
    as_mask, kept = (ids == tokenizer.mask)[chosen].mean(), (ids == plain)[chosen].mean()
    assert abs(as_mask - 0.8) < 0.04
    assert 0.06 < kept < 0.16
    assert (ids == plain)[~chosen].all()
    never = masked(maker, MaskShare(end=False), 9, 200)
    assert all(item["target/ids"][-1] == IGNORE for item in never)


def test_the_share_of_left_to_right(maker: Text) -> None:
    for rate in (0.0, 0.75, 1.0):
        samples = [{"text": maker(None, "red", np.random.default_rng(0))} for _ in range(400)]
        found = LeftToRight(rate=rate)(samples, lambda k: np.random.default_rng((1, k)), {})
        stream = maker.collate([one["text"] for one in found])
        share = stream.extra["left_to_right"].float().mean()
        assert abs(float(share) - rate) < (0.09 if 0 < rate < 1 else 1e-9)
