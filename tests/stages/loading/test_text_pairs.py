"""Pairs of texts, wrong second texts, and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.corruptors.mask_text import MaskText
from vlpipe.stages.loading.corruptors.mismatch_second import MismatchSecond
from vlpipe.stages.loading.makers.answer import ANSWERS, Answer
from vlpipe.stages.loading.makers.base import IGNORE, Maker, Sample, folded
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.makers.text_pair import TextPair
from vlpipe.stages.loading.rows import Row

TEXTS = ["a red circle", "a blue square above it", "green", "Dr. No sleeps. Who wakes him? Nobody."]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 120)


def row(number: int, *texts: str, answers: Any = None) -> Row:
    column = pa.array([answers], ANSWERS)
    return Row(f"row{number}", number, list(texts), {"answers": column[0]})


def seeded(seed: int) -> Any:
    return lambda k: np.random.default_rng((seed, k))


def halves(tokenizer: Tokenizer, ids: Any, segment: Any) -> tuple[str, str]:
    return tokenizer.decode(ids[segment == 0]), tokenizer.decode(ids[segment == 1])


def test_a_text_and_the_next(tokenizer: Tokenizer) -> None:
    maker = TextPair(tokenizer=tokenizer)
    for at, wanted in enumerate([(0, 1), (1, 2), (1, 2)]):  # after the last text there is none
        item = maker(row(0, *TEXTS[:3]), TEXTS[at], RNG)
        assert halves(tokenizer, item["data"], item["extra/segment"]) == tuple(TEXTS[k] for k in wanted)
    long, short = (maker(row(0, *TEXTS[k : k + 2]), TEXTS[k], RNG) for k in (0, 1))
    stream = maker.collate([long, short])
    ids, segment = stream.data, stream.extra["segment"]
    assert stream.mask is not None
    assert ids.shape == segment.shape == stream.mask.shape
    first = ids[0][stream.mask[0]].tolist()
    a, b = tokenizer.ids(TEXTS[0]), tokenizer.ids(TEXTS[1])
    assert first == [tokenizer.cls, *a, tokenizer.sep, *b, tokenizer.sep]
    assert segment[0][stream.mask[0]].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    with pytest.raises(VlpipeError, match="row row7 has one usable text, wanted at least two"):
        maker(row(7, "alone"), "alone", RNG)


def test_a_text_is_split_between_sentences(tokenizer: Tokenizer) -> None:
    maker = TextPair(tokenizer=tokenizer, of="sentences")
    items = [maker(row(0, TEXTS[3]), f" {TEXTS[3]} ", np.random.default_rng(k)) for k in range(60)]
    found = {(item["first"][0], item["second"][0]) for item in items}
    assert found == {
        ("Dr.", "No sleeps. Who wakes him? Nobody."),
        ("Dr. No sleeps.", "Who wakes him? Nobody."),
        ("Dr. No sleeps. Who wakes him?", "Nobody."),
    }
    assert maker(row(0, "一。二"), "一。二", RNG)["second"][0] == "二"
    with pytest.raises(VlpipeError, match="a text of row row3 has one sentence, wanted at least two"):
        maker(row(3, "One sentence. "), "One sentence. ", RNG)


def test_long_pairs_are_cut_and_short_limits_refused(tokenizer: Tokenizer) -> None:
    maker = TextPair(tokenizer=tokenizer, max_positions=40, max_length=8)
    item = maker(row(0, *TEXTS[:2]), TEXTS[0], RNG)
    assert len(item["data"]) == 8
    assert item["data"][-1] == tokenizer.sep
    with pytest.raises(ValueError, match="max_length must be at least 5, got 4"):
        TextPair(tokenizer=tokenizer, max_positions=40, max_length=4)
    with pytest.raises(
        ValueError, match="max_length must be at most 40, the number of positions of the model, got 41"
    ):
        TextPair(tokenizer=tokenizer, max_positions=40, max_length=41)


def test_words_of_both_texts_are_masked(tokenizer: Tokenizer) -> None:
    maker = TextPair(tokenizer=tokenizer)
    samples: list[Sample] = [{"text": maker(row(k, *TEXTS[:2]), TEXTS[0], RNG)} for k in range(200)]
    masked = np.zeros(2, int)
    for sample in MaskText(rate=0.3)(samples, seeded(0), {"text": maker}):
        item = sample["text"]
        at = item["target/ids"] != IGNORE
        special = np.isin(maker(row(0, *TEXTS[:2]), TEXTS[0], RNG)["data"], [tokenizer.cls, tokenizer.sep])
        assert not at[special].any()
        masked += [(at & (item["extra/segment"] == k)).sum() for k in (0, 1)]
    assert (masked > 50).all()


def wrong_seconds(tokenizer: Tokenizer, rows: list[Row], **settings: Any) -> list[tuple[int, str, str]]:
    """(match, first, second) of each row."""
    maker = TextPair(tokenizer=tokenizer)
    samples: list[Sample] = [{"text": maker(one, one.texts[0], RNG)} for one in rows]
    found = []
    for sample in MismatchSecond(**settings)(samples, seeded(0), {"text": maker}):
        item = sample["text"]
        read = halves(tokenizer, item["data"], item["extra/segment"])
        assert read == (folded(item["first"][0]), folded(item["second"][0]))
        found.append((int(item["target/match"]), item["first"][0], item["second"][0]))
    return found


def test_a_wrong_second_text_is_another_row_s(tokenizer: Tokenizer) -> None:
    seconds = ["red", "blue", "green", "a circle"]
    rows = [row(k, f"a {'red' if k % 2 else 'blue'} square", seconds[k % 4]) for k in range(64)]
    found = wrong_seconds(tokenizer, rows, law="half")
    assert [one[0] for one in found].count(0) == 32
    for k, (match, first, second) in enumerate(found):
        assert first == rows[k].texts[0]
        assert (second == rows[k].texts[1]) == bool(match)
        assert second in seconds


def test_a_second_text_that_fits_is_not_wrong(tokenizer: Tokenizer) -> None:
    """Those of the same row, and those that say the same, stay matches."""
    same_row = [row(1, "red", "a circle"), row(1, "red", "a square")]
    assert [one[0] for one in wrong_seconds(tokenizer, same_row, rate=1.0)] == [1, 1]
    same_words = [row(1, "red", "a circle"), row(2, "blue", "A  Circle")]
    assert [one[0] for one in wrong_seconds(tokenizer, same_words, rate=1.0)] == [1, 1]
    differ = [row(1, "red", "a circle"), row(2, "red", "a square")]
    assert [one[0] for one in wrong_seconds(tokenizer, differ, rate=1.0)] == [0, 0]


def test_a_wrong_second_text_needs_pairs(tokenizer: Tokenizer) -> None:
    makers: dict[str, Maker] = {"text": Text(tokenizer=tokenizer)}
    samples: list[Sample] = [{"text": makers["text"](row(0, "red"), "red", RNG)}]
    with pytest.raises(ValueError, match="'text' needs the maker text_pair:TextPair, but has Text"):
        MismatchSecond(rate=1.0)(samples, seeded(0), makers)


def test_answers_are_drawn_by_their_scores() -> None:
    maker = Answer(num_answers=9)
    one = row(
        0,
        "what colour?",
        "a red circle",
        answers=[
            {"question": "what colour?", "label": 3, "score": 1.0},
            {"question": "what colour?", "label": 8, "score": 0.25},
            {"question": "what colour?", "label": 5, "score": 0.0},
            {"question": "how many?", "label": 1, "score": 1.0},
        ],
    )
    drawn = [int(maker(one, "what colour?", np.random.default_rng(k))["data"]) for k in range(1000)]
    assert set(drawn) == {3, 8}
    assert abs(drawn.count(3) / 1000 - 0.8) < 0.05  # four standard errors
    labels = [maker(one, text, RNG) for text in ("how many?", "a red circle", "What colour?")]
    assert maker.collate(labels).data.tolist() == [1, IGNORE, IGNORE]
    assert maker(row(0, "why?"), "why?", RNG)["data"] == IGNORE


@pytest.mark.parametrize(
    ("label", "score", "said"),
    [
        (9, 1.0, "labels from 9 to 9, wanted labels below num_answers 9"),
        (0, -1.0, "a score -1.0, wanted finite scores from 0"),
        (0, float("inf"), "a score inf, wanted finite scores from 0"),
        (None, 1.0, "a null label"),
    ],
)
def test_answers_that_cannot_be_are_refused(label: int | None, score: float, said: str) -> None:
    one = row(4, "why?", answers=[{"question": "why?", "label": label, "score": score}])
    with pytest.raises(VlpipeError, match=f"row row4: answers has .*{said}"):
        Answer(num_answers=9)(one, "why?", RNG)
    with pytest.raises(ValueError, match="num_answers must be at least 1, got 0"):
        Answer(num_answers=0)
