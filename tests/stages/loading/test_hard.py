"""Masked segments, and captions of similar words as negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.corruptors.hard.mask_segments import MaskSegments
from vlpipe.stages.loading.corruptors.hard.mismatch_similar import MismatchSimilar
from vlpipe.stages.loading.corruptors.mask_overlapping import MaskOverlapping, overlaps
from vlpipe.stages.loading.makers.base import IGNORE, Sample
from vlpipe.stages.loading.makers.language.neighbour_text import NeighbourText
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

WORDS = ["a", "red", "blue", "green", "circle", "square", "ring", "on", "the", "left", "of"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 9, 120)


def seeded(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda k: np.random.default_rng((seed, k))


def test_masked_segments_have_the_papers_lengths(tokenizer: Tokenizer) -> None:
    """A position of a long text stays whole with the probability that no anchor reaches it: (1 - r) (1 - 2r/3) (1 - r/3).
    Within 4 standard deviations, neighbours counted as dependent."""
    maker = Text(tokenizer=tokenizer, max_length=60)
    samples: list[Sample] = [
        {"text": maker(None, " ".join(WORDS * 5), np.random.default_rng(0))} for _ in range(400)
    ]
    found = MaskSegments(rate=0.1, following=2)(samples, seeded(0), {"text": maker})
    masked = np.stack([one["text"]["target/ids"] != IGNORE for one in found])
    assert not masked[:, [0, -1]].any()
    inner = masked[:, 4:-1]
    wanted = 1 - 0.9 * (1 - 0.2 / 3) * (1 - 0.1 / 3)
    deviation = (3 * wanted * (1 - wanted) / inner.size) ** 0.5
    assert abs(inner.mean() - wanted) < 4 * deviation
    lone = MaskSegments(rate=0.001, following=2)(samples, seeded(1), {"text": maker})
    lengths = [int((one["text"]["target/ids"] != IGNORE).sum()) for one in lone]
    assert min(lengths) == 1
    assert sorted(set(lengths))[:3] == [1, 2, 3]
    assert abs(np.mean([length == 1 for length in lengths]) - 1 / 3) < 4 * (2 / 9 / 400) ** 0.5 + 0.05
    with pytest.raises(ValueError, match="following must be at least 0, got -1"):
        MaskSegments(following=-1)


def rows(num: int, similar: Callable[[int], list[str]]) -> list[tuple[Row, str]]:
    found = []
    for k in range(num):
        text = f"a {WORDS[1 + k % 3]} {WORDS[4 + k % 2]}"
        near: Any = [None, [{"text": one, "row": "x", "similarity": 0.4} for one in similar(k)]]
        found.append((Row(str(k), k, [text], {"neighbours": near}), text))
    return found


def test_a_share_of_negatives_has_similar_words(tokenizer: Tokenizer) -> None:
    maker = NeighbourText(tokenizer=tokenizer, max_length=12)
    near = {"the ring on the left", "ring of the left"}
    made = [
        {"text": maker(row, text, np.random.default_rng(0))}
        for row, text in rows(600, lambda k: sorted(near) if k % 2 else [])
    ]
    coded = {tuple(tokenizer.encode_one(one, 12)[0]) for one in near}
    own = [tuple(one["text"]["data"]) for one in made]
    found = MismatchSimilar(hard=0.4)([dict(one) for one in made], seeded(3), {"text": maker})
    wrong = [k for k, one in enumerate(found) if not one["text"]["target/match"]]
    hard = [k for k in wrong if tuple(found[k]["text"]["data"]) in coded]
    assert {k % 2 for k in hard} == {1}  # others have no candidates
    num = sum(k % 2 for k in wrong)
    assert abs(len(hard) - 0.4 * num) < 4 * (num * 0.24) ** 0.5
    assert {tuple(found[k]["text"]["data"]) for k in hard} == coded
    for k, one in enumerate(found):
        assert (tuple(one["text"]["data"]) == own[k]) is bool(one["text"]["target/match"])
        assert len(one["text"]["data"]) == len(one["text"]["words"])


def test_wrong_neighbours_are_refused(tokenizer: Tokenizer) -> None:
    maker = NeighbourText(tokenizer=tokenizer, max_length=12)
    row = Row("r", 0, ["a ring"], {"neighbours": [[], []]})
    with pytest.raises(VlpipeError, match="row r has 1 usable texts, but the column neighbours has 2 lists"):
        maker(row, "a ring", np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs the maker neighbour_text:NeighbourText, but has Text"):
        MismatchSimilar()([], seeded(0), {"text": Text(tokenizer=tokenizer)})
    with pytest.raises(ValueError, match="hard must be from 0 to 1, got 2"):
        MismatchSimilar(hard=2)


def test_what_overlaps_a_masked_region_is_masked_too() -> None:
    """Unit squares shifted by 0.25 and by 0.5 overlap by 0.75 / 1.25 = 0.6 and by 0.5 / 1.5 = 1/3; the last is apart."""
    boxes = np.array([[0, 0, 1, 1], [0.25, 0, 1.25, 1], [0.5, 0, 1.5, 1], [3, 3, 4, 4]], np.float32)
    np.testing.assert_allclose(overlaps(boxes)[0], [1, 0.6, 1 / 3, 0], rtol=1e-5)
    for seed in range(20):
        sample: Sample = {"regions": {"data": np.ones((4, 2), np.float32), "extra/box": boxes}}
        (found,) = MaskOverlapping(rate=0.01, iou=0.4)([sample], seeded(seed), {})
        masked = found["regions"]["target/masked"].tolist()
        assert masked in (
            [True, True, False, False],
            [True, True, True, False],
            [False, True, True, False],
            [False, False, False, True],
        )
        assert not found["regions"]["data"][masked].any()
        assert found["regions"]["data"][[not one for one in masked]].all()
        assert found["regions"]["target/feat"].all()
