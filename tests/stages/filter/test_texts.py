from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.filter.texts import TextRules
from vlpipe.stages.row import text

CASES = [
    ("a dog on the beach", None),
    ("dog beach", "too_few_words"),
    ("", "too_few_words"),
    ("   a   b  ", "too_few_words"),
    ("one two three four five six", "too_many_words"),
    ("IMG_0123 best price", "junk"),
    ("photo DSC00042 of us", "junk"),
    ("sunset over sea.JPG", "junk"),
    ("see https://example.org for more", "junk"),
    ("an image of dogs", None),  # `img` inside a word is not a file name
    ("the picture is untitled", "junk"),
]


@pytest.mark.parametrize(("words", "why"), CASES)
def test_each_rule_has_its_reason(image_rows: Callable[..., pa.Table], words: str, why: str | None) -> None:
    out = run_map(TextRules(max_words=5), image_rows([[text(words, "web")]]))
    entry = out.table["texts"].to_pylist()[0][0]
    assert entry == text(words, "web", **({} if why is None else {"kept": False, "why": why}))


def test_other_sources_and_earlier_verdicts_are_left_alone(image_rows: Callable[..., pa.Table]) -> None:
    texts = [[text("dog", "human"), text("dog", "synth"), text("dog", "web", kept=False, why="not_matched")]]
    assert run_map(TextRules(), image_rows(texts)).table["texts"].to_pylist() == texts
    both = run_map(TextRules(sources=("web", "synth")), image_rows(texts)).table["texts"].to_pylist()[0]
    assert [t["why"] for t in both] == [None, "too_few_words", "not_matched"]


def test_own_junk_patterns_replace_the_default(image_rows: Callable[..., pa.Table]) -> None:
    out = run_map(TextRules(junk=("stock photo",)), image_rows([[text("Stock Photo of a dog", "web")]]))
    assert out.table["texts"].to_pylist()[0][0]["why"] == "junk"


def test_bad_parameters_are_said_before_the_run() -> None:
    problems = TextRules(min_words=5, max_words=2, junk=("(",)).preflight()
    assert problems[0].startswith("junk: '(' is no regular expression: missing )")
    assert problems[1] == "wanted 0 <= min_words <= max_words, got 5 and 2"
