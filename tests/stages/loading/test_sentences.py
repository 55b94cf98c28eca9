"""Sentences of long captions: where one ends, what is drawn, and that a training run draws other ones each time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.makers.sentences import MAX_CHARS, Sentences, sentences
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

LONG = "A red circle. A blue square above it! Is it small? The ground is green"
FOUR = ["A red circle.", "A blue square above it!", "Is it small?", "The ground is green"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([LONG] * 3, 120)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (LONG, FOUR),
        ("  one sentence alone.  ", ["one sentence alone."]),
        ("", [""]),
        (
            "Dr. No meets J. Smith at St. Paul's. It rains.",
            ["Dr. No meets J. Smith at St. Paul's.", "It rains."],
        ),
        (
            "About 2.5 m, e.g. a door. Plan b. It is shut.",
            ["About 2.5 m, e.g. a door.", "Plan b.", "It is shut."],
        ),
        ("Wait... what? No.", ["Wait...", "what?", "No."]),
        (
            "\u4e00\u53ea\u72d7\u3002\u4e00\u53ea\u732b\u3002",
            ["\u4e00\u53ea\u72d7\u3002", "\u4e00\u53ea\u732b\u3002"],
        ),
        (". . . a.", [".", ".", ".", "a."]),
    ],
)
def test_where_a_sentence_ends(text: str, wanted: list[str]) -> None:
    assert sentences(text) == wanted


def test_of_a_huge_text_the_start_is_looked_at() -> None:
    for piece in ("a. ", ". ", "Dr. ", " ", "\u3002", "(" * 50 + ". ", "a b "):
        assert sum(map(len, sentences(piece * (200_000 // len(piece))))) <= MAX_CHARS


def test_what_is_drawn(tokenizer: Tokenizer) -> None:
    one = Sentences(tokenizer=tokenizer)
    drawn = Counter(one.drawn(LONG, rng(n)) for n in range(400))
    assert set(drawn) == set(FOUR)
    assert min(drawn.values()) > 60  # 100 each are expected, standard deviation 8.7
    two = {Sentences(tokenizer=tokenizer, num=2).drawn(LONG, rng(n)) for n in range(200)}
    assert two == {f"{a} {b}" for at, a in enumerate(FOUR) for b in FOUR[at + 1 :]}
    run = {Sentences(tokenizer=tokenizer, num=2, of="run").drawn(LONG, rng(n)) for n in range(100)}
    assert run == {f"{a} {b}" for a, b in pairwise(FOUR)}
    first = Sentences(tokenizer=tokenizer, num=3, of="first")
    assert {first.drawn(LONG, rng(n)) for n in range(5)} == {" ".join(FOUR[:3])}
    half = Counter(Sentences(tokenizer=tokenizer, whole=0.5).drawn(LONG, rng(n)) == LONG for n in range(400))
    assert 150 < half[True] < 250  # standard deviation 10
    assert Sentences(tokenizer=tokenizer, num=4).drawn(LONG, rng(0)) == LONG


def test_the_ids_are_those_of_the_sentence(tokenizer: Tokenizer) -> None:
    row = Row("r", 3, [LONG], {})
    maker, plain = Sentences(tokenizer=tokenizer, prompt="a "), Text(tokenizer=tokenizer, prompt="a ")
    for seed in range(5):
        found, wanted = maker(row, LONG, rng(seed)), plain(row, maker.drawn(LONG, rng(seed)), rng(9))
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in wanted.items()
        }
    assert maker.count_positions(row, LONG) < plain.count_positions(row, LONG)


def test_mistakes(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        Sentences(tokenizer=tokenizer, num=0)
    with pytest.raises(ValueError, match="whole must be from 0 to 1"):
        Sentences(tokenizer=tokenizer, whole=1.5)
