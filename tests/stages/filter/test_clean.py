from __future__ import annotations

import random
import re
import time

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.filter.clean import CleanTexts, clean, repairer, without_scripts

CASES = [
    ("a dog on the beach", "a dog on the beach"),
    ("cap &amp; <b>x</b>\x00\x07 ...", "cap & x ..."),
    ("it&amp;#39;s", "it's"),  # COYO-700M's
    ("&amp;amp;amp;amp;amp;lt;3 you", "<3 you"),  # escaped five times
    ("two\nlines\tand\r\nmore", "two lines and more"),
    ("  many   spaces\u00a0 \u3000here ", "many spaces here"),
    ("schÃ¶ner Hund", "schöner Hund"),
    ("cafe\u0301", "caf\u00e9"),
    ("\u202eabc\u202c \u2066def\u2069", "abc def"),  # bidi controls
    ("zero\u200bwidth\ufeff so\u00adft", "zerowidth soft"),
    ("line\u2028break", "line break"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("a < b and c > d", "a < b and c > d"),
    ("I <3 dogs", "I <3 dogs"),
    ("<PERSON> with a dog", "<PERSON> with a dog"),  # CC12M's mark for names
    ("<script>alert('x')</script>dog<style>b{}</style>", "dog"),
    ("<img src=x onerror=y>dog<br/>cat<!-- no -->", "dog cat"),
    ("<<b>b>x", "< b>x"),
    ("<b>music</b>, <I class='x'>sea</I>. m<sup>2</sup>", "music, sea. m2"),
    ("a<span/>b<a href=c>d</a><br>e<bold>f<b-x>g", "abd e f g"),
    ("&lt;b&gt;x&lt;/b&gt;", "x"),  # a tag that was escaped
    ("\u201ccurled\u201d it\u2019s", '"curled" it\'s'),
    ("日本語の犬", "日本語の犬"),
    ("<STYLE a=b>x</style >dog<script>never closed", "dog never closed"),
    (
        "dog &#99999999999; &#x" + "f" * 5000 + " &#" + "9" * 5000 + ";",
        "dog \ufffd \ufffd \ufffd",
    ),  # int() refuses
    ("\x00\x07", ""),
    ("", ""),
]


@pytest.mark.parametrize(("dirty", "expected"), CASES)
def test_cleaning_and_that_it_is_done_once(dirty: str, expected: str) -> None:
    fix = repairer()
    assert clean(dirty, fix, 2000) == expected
    assert clean(expected, fix, 2000) == expected


def test_cleaning_twice_is_cleaning_once_whatever_comes() -> None:
    parts = [
        "&amp;",
        "&",
        "lt;",
        "<b>",
        "</b",
        ">",
        "é",
        "Ã©",
        "\u200d",
        "\u0301",
        " ",
        "\n",
        "a",
        "#39;",
        "ﬁ",
        "&notit",
    ]
    draw, fix = random.Random(0), repairer()
    for _ in range(3000):
        once = clean("".join(draw.choices(parts, k=draw.randint(1, 12))), fix, 10)
        assert clean(once, fix, 10) == once
        assert len(once) <= 10


def test_a_text_made_to_change_forever_is_a_fault() -> None:
    with pytest.raises(RowFault, match="endless_markup: the text still changes after 10 rounds"):
        clean("&" + "#38;" * 30 + "lt;", lambda t: t, 2000)


def test_scripts_go_as_one_expression_would_say_it() -> None:
    whole = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
    parts = ["<script>", "<Style x>", "</script>", "</STYLE >", "</ script>", "<scripts>", "a\n", "<", ">"]
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 9)))
        assert without_scripts(text) == whole.sub(" ", text), text


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        *(
            "<script>",
            "<style><script>",
            "<a ",
            "<!--",
            "&amp;",
            "&#",
            "\u202e",
            "Ã©",
            "a\u0301",
            "<b",
            "<b><b",
            "</b/",
        ),
        *("\u0301\u0327", "\u0344\u0316", "\uff9e\u0301", "I\u0300I\u0327", "\u00cc\u0081\u00cc\u00a7"),
    ],
)
def test_a_megabyte_of_markup_takes_no_minutes(part: str) -> None:
    """Of `<script>` that took the square of its length: 7 s for 128 kB."""
    began = time.process_time()
    assert len(clean(part * (1_000_000 // len(part)), repairer(), 2000)) <= 2000
    assert time.process_time() - began < 15


def test_the_original_is_kept_where_something_changed() -> None:
    texts = [
        [text("a &amp; b", "web"), text("fine", "web"), text("x &amp; y", "synth")],
        [],
        [text("<p></p>", "web"), text("", "web", kept=False, why="old")],
    ]
    rows = pa.table({"id": ["a", "b", "c"], "texts": pa.array(texts, TEXTS)})
    out = run_map(CleanTexts(), rows)
    found = out.table.to_pylist()
    assert [t["text"] for t in found[0]["texts"]] == ["a & b", "fine", "x &amp; y"]
    assert [row["alt_raw"] for row in found] == [["a &amp; b", None, None], [], ["<p></p>", None]]
    assert found[2]["texts"][0] == text("", "web", kept=False, why="empty")
    assert out.counts == {"cleaned": 2}
    again = run_map(CleanTexts(sources=("web", "synth")), out.table).table.to_pylist()
    assert [t["text"] for t in again[0]["texts"]] == ["a & b", "fine", "x & y"]
    assert again[0]["alt_raw"] == ["a &amp; b", None, "x &amp; y"]  # the first original stays


def test_length_is_capped_in_characters() -> None:
    assert clean("word " * 1000, repairer(), 2000) == ("word " * 400).strip()
