from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.milnce import MilNce
from vlpipe.stages.clips.text_signals import TextSignals, repeated_ngrams, spoken_words
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import Rule
from vlpipe.stages.filter.rules import Rules


def clips(said: list[list[str]], times: list[tuple[float, float]]) -> pa.Table:
    return pa.table(
        {
            "id": [f"clip{n}" for n in range(len(said))],
            "texts": pa.array([[text(t, "asr") for t in ts] for ts in said], TEXTS),
            "start_s": pa.array([a for a, _ in times], pa.float64()),
            "end_s": pa.array([b for _, b in times], pa.float64()),
        }
    )


def test_each_text_has_its_signals() -> None:
    table = clips([["add the salt", "one"], [], ["go on go on go on go on"]], [(1, 3), (0, 1), (4, 4)])
    rows = run_map(TextSignals(), table).table.to_pylist()
    assert [row["clip_s"] for row in rows] == [2, 1, 0]
    assert [row["words_per_s"] for row in rows] == [[1.5, 0.5], [], [None]]
    assert [row["repeated_ngrams"] for row in rows] == [[0, 0], [], [pytest.approx(4 / 6)]]
    assert [row["tag_ratio"] for row in rows] == [[0, 0], [], [0]]


def test_speed_is_over_the_time_it_is_said_in(videos: Callable[..., pa.Table]) -> None:
    paired = run_map(MilNce(), videos([[(8, 9, "cut the red onion")]])).table
    row = run_map(TextSignals(), paired).table.to_pylist()[0]
    assert (row["clip_s"], row["words_per_s"]) == (5, [4])


@pytest.mark.parametrize(
    ("said", "words", "num_tags"),
    [
        ("[Music]", [], 1),
        ("[Music] add salt", ["add", "salt"], 1),
        ("[speaking foreign language] Hola", ["hola"], 3),
        (">> well (laughs) no", ["well", "no"], 1),
        ("&gt;&gt; well - no", ["well", "no"], 0),
        ("♪ la la land ♪", [], 5),
        ("foreign", [], 1),
        ("Music. music", [], 2),
        ("foreign music is nice", ["foreign", "music", "is", "nice"], 0),
        ("so *sighs* yes", ["so", "yes"], 1),
        ("", [], 0),
        ("2 > 1", ["2", "1"], 0),
    ],
)
def test_tags_are_no_words(said: str, words: list[str], num_tags: int) -> None:
    assert spoken_words(said) == (words, num_tags)


def test_a_text_without_a_word_is_all_tag() -> None:
    table = clips([["♪", "[Music] hi", ""]], [(0, 2)])
    assert run_map(TextSignals(), table).table["tag_ratio"].to_pylist() == [[1, 0.5, 1]]


def test_repeated_ngrams_against_a_plain_count() -> None:
    words = list("ababacaba")
    seen: set[tuple[str, ...]] = set()
    again = 0
    for k in range(len(words) - 2):
        gram = tuple(words[k : k + 3])
        again += gram in seen
        seen.add(gram)
    assert repeated_ngrams(words, 3) == pytest.approx(again / 7)
    assert repeated_ngrams(words[:2], 3) == 0
    assert repeated_ngrams(["x"] * 10, 1) == pytest.approx(0.9)


def test_rules_judge_clips_by_them(videos: Callable[..., pa.Table]) -> None:
    cues = [
        (0, 6, "add the salt and stir it"),
        (8, 14, "[Music]"),
        (15, 15.5, "much too fast to be said"),
        (90, 96, "far away words"),
    ]
    paired = run_map(MilNce(), videos([cues])).table
    measured = run_map(TextSignals(), paired).table
    rules = Rules(
        rules=(
            Rule(column="gap_before_s", op="<=", value=60.0, on_missing="keep"),
            Rule(column="tag_ratio", op="<", value=0.5),
            Rule(column="words_per_s", op="<=", value=5.0),
            Rule(column="clip_s", op=">=", value=2.0),
        ),
        sources=("asr", "human"),
        drop_textless=True,
    )
    out = run_map(rules, measured)
    assert [t[0]["text"] for t in out.table["texts"].to_pylist()] == ["add the salt and stir it"]
    assert {(r.why, r.detail) for r in out.rejects} == {
        ("gap_before_s", "gap_before_s 74.5, wanted <= 60.0"),
        ("no_text_kept", "asr: tag_ratio (tag_ratio 1, wanted < 0.5)"),
        ("no_text_kept", "asr: words_per_s (words_per_s 12, wanted <= 5.0)"),
    }


def test_what_it_reads_must_be_there() -> None:
    rows: Any = pa.table({"id": ["a"], "texts": pa.array([[]], TEXTS)})
    with pytest.raises(
        SchemaError, match=r"clips\.text_signals reads column 'start_s', which its input does not have"
    ):
        TextSignals().schema(rows.schema)


@pytest.mark.parametrize("code", ["&#" + "1" * 5000 + ";", "&#x" + "f" * 5000 + ";"])
def test_a_character_number_of_any_length_is_one_unknown_character(code: str) -> None:
    assert spoken_words(f"{code} salt &#039;") == (["\ufffd", "salt", "'"], 0)
