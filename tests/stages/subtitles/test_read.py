"""Every subtitle format by a small file of it: times, texts, word times; what is dropped is counted."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.cue import Cue, Word
from vlpipe.stages.subtitles.read import MAX_BYTES, read_subtitles
from vlpipe.stages.subtitles.track import Track
from vlpipe.stages.video.rows import CUES


def read(content: str | bytes | Any, name: str = "a", **more: Any) -> Track:
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    return read_subtitles(content.encode() if isinstance(content, str) else content, name, **more)


def simple(found: Track) -> list[tuple[float, float, str]]:
    return [(cue.start_s, cue.end_s, cue.text) for cue in found.cues]


def timed(cue: Cue) -> list[tuple[str, float, float]]:
    return [(w.word, w.start_s, w.end_s) for w in cue.words or ()]


def fault(content: Any, **more: Any) -> str:
    with pytest.raises(RowFault) as caught:
        read(content, **more)
    return str(caught.value)


BLANK = " "
ROLLING = f"""WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:02.060 align:start position:0%
{BLANK}
guys<00:00:00.179><c> this</c><00:00:00.359><c> is</c>

00:00:02.060 --> 00:00:02.070 align:start position:0%
guys this is
{BLANK}

00:00:02.070 --> 00:00:03.740 align:start position:0%
guys this is
water

00:00:03.740 --> 00:00:03.750 align:start position:0%
water
{BLANK}

00:00:03.750 --> 00:00:05.000 align:start position:0%
water
&gt;&gt;<00:00:04.100><c> water</c>
"""


def test_a_line_of_one_space_is_part_of_the_cue() -> None:
    found = read(ROLLING)
    assert simple(found) == [(0.0, 2.06, "guys this is"), (2.07, 3.74, "water"), (3.75, 5.0, ">> water")]
    assert timed(found.cues[0]) == [("guys", 0.0, 0.179), ("this", 0.179, 0.359), ("is", 0.359, 2.06)]
    assert found.cues[1].words is None  # YouTube gives a word alone in its line no time
    assert timed(found.cues[2]) == [(">>", 3.75, 4.1), ("water", 4.1, 5.0)]
    assert (found.cues[0].source, found.cues[0].lang) == ("auto", "en")
    assert found.counts == {"cues_carried_over": 2, "words_carried_over": 8}
    assert len(read(ROLLING, rollup="never").cues) == 5


def test_a_cue_is_a_row() -> None:
    cue = Cue(0.5, 1.5, "a b", (Word(0.5, 1.0, "a"), Word(1.0, 1.5, "b")), "auto", "en")
    rows = pa.array([[cue.row(), Cue(2, 3, "c").row()]], CUES).to_pylist()[0]
    assert rows[0] == cue.row()
    assert rows[1] == {
        "start_s": 2,
        "end_s": 3,
        "text": "c",
        "words": None,
        "source": "unknown",
        "lang": None,
    }


def test_webvtt_of_the_standard() -> None:
    found = read(
        "\ufeffWEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nREGION\nid:bill\n\nNOTE\nnothing\nis said\n\n"
        "first cue\n00:01.500 --> 00:02.500 align:start\n<v Anna>Fish &amp; <i>chips</i></v>\nsecond line\n\n"
        "NOTE a --> would not be allowed\n\nlost text\n\n100:00:03,000-->100:00:04.000\nvery late\n\n\n"
    )
    assert simple(found) == [(1.5, 2.5, "Fish & chips second line"), (360003.0, 360004.0, "very late")]
    assert found.counts == {"blocks_no_time": 1}


def test_webvtt_whose_first_line_is_not_timed() -> None:
    found = read("WEBVTT\n\n00:01.000 --> 00:03.000\nold words\nnew <00:02.000>one<00:02.500>s here\n")
    assert timed(found.cues[0]) == [
        ("old", 1.0, 1.0),
        ("words", 1.0, 1.0),
        ("new", 1.0, 2.0),
        ("ones", 2.0, 2.5),
        ("here", 2.5, 3.0),
    ]


@pytest.mark.parametrize("stamp", ["00:09.000", "00:00.500"])
def test_word_times_outside_the_cue_mean_nothing(stamp: str) -> None:
    found = read(f"WEBVTT\n\n00:01.000 --> 00:03.000\na <{stamp}>b\n")
    assert (simple(found), found.cues[0].words) == ([(1.0, 3.0, "a b")], None)


@pytest.mark.parametrize(
    "content",
    [
        "1\n00:00:01,000 --> 00:00:02,500\nHello <b>you</b>\nthere\n\n2\n00:00:03,000 --> 00:00:04,000\n42\n",
        "\r\n1\r\n00:00:01.000 --> 00:00:02.500\r\nHello you there\r\n\r\n2\r\n00:00:03 --> 00:00:04\r\n42",
        "00:00:01,0 --> 00:00:02,50\nHello you there\n\n00:00:03,000 --> 00:00:04,000\n42\n\n",
        "0:0:1,000-->0:0:2,500  X1:20 X2:30\n{\\an8}Hello you\n\nthere\n2\n00:03.0 --> 00:04.0\n42\n",
    ],
    ids=[
        "plain",
        "crlf, points, no milliseconds",
        "no indices",
        "blank line in the text, no blank line between",
    ],
)
def test_srt(content: str) -> None:
    found = read(content)
    assert simple(found) == [(1.0, 2.5, "Hello you there"), (3.0, 4.0, "42")]
    assert found.counts == {}


@pytest.mark.parametrize(
    ("encoding", "counts"),
    [("utf-8-sig", {}), ("utf-16", {}), ("utf-8", {}), ("cp1252", {"decoded_otherwise": 1})],
)
def test_encodings(encoding: str, counts: dict[str, int]) -> None:
    found = read("1\n00:00:01,000 --> 00:00:02,000\nCrème brûlée€\n".encode(encoding))
    assert simple(found) == [(1.0, 2.0, "Crème brûlée€")]
    assert found.counts == counts
    assert (
        simple(read("1\n00:00:01,000 --> 00:00:02,000\nжюж".encode("cp1251"), encoding="cp1251"))[0][2]
        == "жюж"
    )


def test_srt_with_faults() -> None:
    """(c) zero and negative durations, (e) out of order, no text, no time: kept, or dropped and counted."""
    found = read(
        "1\n00:00:05,000 --> 00:00:06,000\nlast\n\n2\n00:00:01,000 --> 00:00:01,000\nzero\n\n"
        "3\n00:00:03,000 --> 00:00:02,000\nnegative\n\n4\n00:00:02,000 --> 00:00:03,000\n\n\n"
        "5\n00:00:1d,000 --> 00:00:03,000\nno time\n\n"
    )
    assert simple(found) == [(1.0, 1.0, "zero"), (5.0, 6.0, "last")]
    assert found.counts == {
        "cues_bad_times": 2,
        "cues_no_duration": 1,
        "cues_no_text": 1,
        "cues_out_of_order": 1,
    }


def test_sbv() -> None:
    found = read("0:00:01.000,0:00:02.500\r\nHello\r\nyou\r\n\r\n0:00:03.000,0:00:04.000\r\nend")
    assert simple(found) == [(1.0, 2.5, "Hello you"), (3.0, 4.0, "end")]


def test_json3() -> None:
    """Appended line breaks say nothing; a line stays on the screen while the next one comes."""
    found = read(
        {
            "events": [
                {"tStartMs": 0, "dDurationMs": 99000, "id": 1, "wpWinPosId": 1},
                {
                    "tStartMs": 100,
                    "dDurationMs": 4000,
                    "segs": [{"utf8": "so"}, {"utf8": " now", "tOffsetMs": 400}],
                },
                {"tStartMs": 2000, "dDurationMs": 2100, "aAppend": 1, "segs": [{"utf8": "\n"}]},
                {"tStartMs": 2010, "dDurationMs": 1000, "segs": [{"utf8": "now", "acAsrConf": 200}]},
                {"tStartMs": 4000, "segs": [{"utf8": "[Music]"}]},
                {"segs": [{"utf8": "no time"}]},
            ]
        }
    )
    assert simple(found) == [(0.1, 2.01, "so now"), (2.01, 3.01, "now"), (4.0, 4.0, "[Music]")]
    assert timed(found.cues[0]) == [("so", 0.1, 0.5), ("now", 0.5, 2.01)]
    assert {cue.source for cue in found.cues} == {"auto"}
    assert found.counts == {"cues_bad_times": 1, "cues_no_duration": 1}


def test_json3_written_by_people_may_overlap() -> None:
    event = {"dDurationMs": 3000, "segs": [{"utf8": "one\nline"}]}
    found = read({"events": [{"tStartMs": 0, **event}, {"tStartMs": 1000, **event}]}, rollup="never")
    assert simple(found) == [(0.0, 3.0, "one line"), (1.0, 4.0, "one line")]
    assert {(cue.source, cue.words) for cue in found.cues} == {("unknown", None)}
    assert read({"events": [{"tStartMs": 0, **event}]}, source="manual").cues[0].source == "manual"


def test_srv3() -> None:
    found = read(
        '<?xml version="1.0" encoding="utf-8" ?><timedtext format="3"><head><ws id="0"/></head><body>'
        '<w t="0" id="1" wp="1" ws="1"/><p t="100" d="4000" w="1"><s ac="200">so</s><s t="400"> now</s></p>'
        '<p t="2000" d="2100" w="1" a="1">\n</p><p t="2010" d="1000" w="1"><s>it&#39;s</s><s t="300"> on</s></p>'
        "</body></timedtext>"
    )
    assert simple(found) == [(0.1, 2.01, "so now"), (2.01, 3.01, "it's on")]
    assert timed(found.cues[1]) == [("it's", 2.01, 2.31), ("on", 2.31, 3.01)]
    assert found.cues[0].source == "auto"
    by_hand = read('<timedtext format="3"><body><p t="0" d="900">one<br/>two</p></body></timedtext>')
    assert (simple(by_hand), by_hand.cues[0].source) == ([(0.0, 0.9, "one two")], "unknown")


def test_srv1_and_srv2() -> None:
    one = (
        '<transcript><text start="1.5" dur="2">it&amp;#39;s &lt;i&gt;on</text><text start="4"/></transcript>'
    )
    assert (simple(read(one)), read(one).counts) == ([(1.5, 3.5, "it's on")], {"cues_no_text": 1})
    assert simple(read('<timedtext><text t="1500" d="2000">a\nb</text></timedtext>')) == [(1.5, 3.5, "a b")]


def test_transcript_lists() -> None:
    found = read(
        [
            {"text": "a\nb", "start": 1, "duration": 2.5},
            {"text": "c", "start": 5.0, "end": 6.0},
            {"text": None, "start": 7, "duration": 1},
            {"text": "x", "start": float("nan"), "duration": 1},
            "nothing",
            {"text": "half \ud83d here", "start": 8, "duration": 1},
        ]
    )
    assert simple(found) == [(1.0, 3.5, "a b"), (5.0, 6.0, "c"), (8.0, 9.0, "half ? here")]
    assert found.counts == {"cues_bad_times": 2, "cues_bad_unicode": 1, "cues_no_text": 1}


def test_half_characters_of_json_are_repaired_everywhere() -> None:
    segs = [{"utf8": "half \ud83d", "acAsrConf": 1}, {"utf8": " on", "tOffsetMs": 5}]
    words = [{"word": "caf\ud83d", "start": 0, "end": 1}]
    for content, text in (
        ({"events": [{"tStartMs": 0, "dDurationMs": 900, "segs": segs}]}, "half ? on"),
        ({"segments": [{"start": 0, "end": 1, "text": "caf\ud83d", "words": words}]}, "caf?"),
    ):
        found = read(content)
        assert (found.cues[0].text, found.counts) == (text, {"cues_bad_unicode": 1})
        pa.array([[found.cues[0].row()]], CUES)


def test_whisper() -> None:
    """WhisperX gives numbers no time: they get what lies between their neighbours."""
    words = [
        {"word": " Add", "start": 1.0, "end": 1.2, "score": 0.9},
        {"word": "200"},
        {"word": "grams", "start": 2.0, "end": 2.5},
    ]
    segments = [
        {"start": 1.0, "end": 2.5, "text": " Add 200 grams", "words": words},
        {"start": 3.0, "end": 4.0, "text": " of salt", "avg_logprob": -0.2},
        {"start": 4.0, "end": 5.0, "text": "other words", "words": words},
        {"start": 5.0, "end": 6.0, "text": "no list", "words": 3},
    ]
    found = read({"segments": segments, "language": "en"})
    assert timed(found.cues[0]) == [("Add", 1.0, 1.2), ("200", 1.2, 2.0), ("grams", 2.0, 2.5)]
    assert simple(found)[1:] == [(3.0, 4.0, "of salt"), (4.0, 5.0, "other words"), (5.0, 6.0, "no list")]
    assert found.cues[2].words is None
    assert found.counts == {"cues_bad_word_times": 1}
    assert {(cue.source, cue.lang) for cue in found.cues} == {("auto", "en")}


ASS = """[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,not said
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello{\\i0}\\Nyou
"""


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (ASS, {}),
        ("{25}{62}Hello|you\n", {"fps": 25.0}),
        ("{1}{1}25.0\n{25}{62}Hello|you\n", {}),
        ("[10][25]Hello|you\n", {}),
        (
            '<SAMI><BODY><SYNC Start=1000><P Class="EN">Hello<br>you<SYNC Start=2500><P>&nbsp;</BODY></SAMI>',
            {},
        ),
        (
            '<tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="1s" end="2.5s">Hello<br/>you</p></div></body></tt>',
            {},
        ),
    ],
    ids=["ass", "microdvd", "microdvd that says its fps", "mpl2", "sami", "ttml"],
)
def test_rarer_formats(content: str, more: dict[str, Any]) -> None:
    ((start, end, text),) = simple(read(content, **more))
    assert (start, end, text) == (1.0, pytest.approx(2.5, abs=0.03), "Hello you")


def test_frames_need_a_rate() -> None:
    assert (
        fault("{25}{62}Hello")
        == "bad_subtitles: a is a MicroDVD file, which has frame numbers, and neither it nor the video states a frame rate"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<>", "bad_subtitles: a is not valid XML: "),
        ("just text", "bad_subtitles: a is in no known subtitle format; it starts with 'just text'"),
        (b"\x00\x01\x02\xff", "bad_subtitles: a is not a text file: it contains a NUL character"),
        (b"\x81\x8d", "bad_subtitles: a cannot be decoded as utf-8 or cp1252"),
        ("WEBVTT", "no_cues: a has no cue with text"),
        ("[]", "no_cues: a has no cue with text"),
        ({"segments": [{}]}, "no_cues: a has no cue with text; 1 cues_bad_times"),
        (
            {"title": 1},
            "bad_subtitles: a is JSON without subtitles: none of events, segments, transcription, chunks "
            "is a list; it has the keys title",
        ),
        ("[1, 2", "bad_subtitles: a is not valid JSON: "),
        ("[" * 100_000, "bad_subtitles: a is not valid JSON: "),
        ("<p", "bad_subtitles: a is not valid XML: "),
        (
            "<html></html>",
            "bad_subtitles: a is XML without subtitles: its root must be <tt>, <timedtext> or <transcript>, but is <html>",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><tt/>',
            "bad_subtitles: a is refused: its XML declares a document type or entities, which subtitles must not",
        ),
        (b" " * (MAX_BYTES + 1), f"bad_subtitles: a has {MAX_BYTES + 1} bytes, the limit is {MAX_BYTES}"),
    ],
)
def test_what_cannot_be_read_is_a_typed_fault(content: Any, said: str) -> None:
    assert fault(content).startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "\n" * 200_000 + "x",
        " " * 400_000 + "\n1",
        "<" * 400_000,
        "WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<c" * 200_000,
        "1\n00:00:00,000 --> 00:00:01,000\n" + "{\\" * 200_000,
        "WEBVTT\n\n00:00.000 --> 00:09.000\n" + "a <00:01.000>" * 40_000,
        "WEBVTT\n\n" + "00:00.000 --> 00:09.000\n" * 40_000,
        "<!--a-->" * 50_000,
        ";\n" * 100_000,
        json.dumps({"segments": [{"start": 0, "end": 9, "text": "a", "words": [{"word": "a"}] * 100_000}]}),
    ],
    ids=[
        "newlines",
        "spaces",
        "lt",
        "open tags",
        "open braces",
        "stamps",
        "times",
        "comments",
        "semicolons",
        "words",
    ],
)
def test_hostile_files_take_no_time(content: str) -> None:
    begin = time.process_time()
    with contextlib.suppress(RowFault):
        read(content)
    assert time.process_time() - begin < 5
