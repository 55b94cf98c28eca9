"""Files as tools and people write them: each text stays in its own cue, and what is dropped is counted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.read import NotSubtitles, read_subtitles
from vlpipe.stages.subtitles.track import Track

STEPS = "".join(
    f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nstep {word}\n\n" for n, word in enumerate("abcd", 1)
)
FOUR = [(1.0, 1.9, "step a"), (2.0, 2.9, "step b"), (3.0, 3.9, "step c"), (4.0, 4.9, "step d")]
SOUP = (
    "1\n00:00:01,000 --> 00:00:02,000\nstir the soup\n\n2\n{}\nadd the salt\n\n"
    "9\n00:00:09,000 --> 00:00:10,000\nserve it\n"
)
THREE = [(1.0, 2.0, "stir the soup"), (3.0, 4.0, "add the salt"), (9.0, 10.0, "serve it")]


def read(content: str | bytes, **more: object) -> Track:
    return read_subtitles(content.encode() if isinstance(content, str) else content, "a", **more)  # type: ignore[arg-type]


def simple(found: Track) -> list[tuple[float, float, str]]:
    return [(cue.start_s, cue.end_s, cue.text) for cue in found.cues]


def no_cues(content: str | bytes) -> str:
    with pytest.raises(RowFault, match=r"^no_cues: ") as caught:
        read(content)
    return str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\r\r\r\n", "\r"])
@pytest.mark.parametrize("is_vtt", [False, True])
def test_line_ends(end: str, is_vtt: bool) -> None:
    text = "WEBVTT\n\n" + STEPS.replace(",", ".") if is_vtt else STEPS
    found = read(text.replace("\n", end))
    assert (simple(found), found.counts) == (FOUR, {})


@pytest.mark.parametrize(
    "content",
    [
        STEPS.replace("\n00:", "\n\n00:"),
        STEPS.replace("\n00:", "\n \n\n00:"),
        STEPS.replace("\n", "\n\n"),
        STEPS.replace("\n\n", "\n"),
        STEPS.replace("\n0", " 0"),
        STEPS.replace("\n0", ".\n0"),
        STEPS.replace("\n0", "\ufeff\n0"),
        STEPS.replace("1\n", "", 1),
        STEPS.replace("\n\n", "\n").replace("1\n", "", 1),
        STEPS.replace("00\nstep", "00 step"),
        STEPS.replace("00\nstep", "00 X1:10 X2:20\nstep"),
    ],
    ids=[
        "index apart",
        "index far apart",
        "every line apart",
        "nothing apart",
        "index on the line of times",
        "index with a point",
        "index with a byte order mark",
        "first index is missing",
        "nothing apart, first index missing",
        "text on the line of times",
        "positions",
    ],
)
def test_where_index_numbers_stand(content: str) -> None:
    found = read(content)
    assert (simple(found), found.counts) == (FOUR, {})


def test_a_vtt_without_empty_lines() -> None:
    found = read("WEBVTT\n\n" + STEPS.replace(",", ".").replace("\n\n", "\n"))
    assert (simple(found), found.counts) == (FOUR, {})


@pytest.mark.parametrize(
    "times",
    [
        "00: 00: 03, 000 --> 00: 00: 04, 000",
        "00 : 00 : 03 , 000 -- > 00 : 00 : 04 , 000",
        "00:00:03,000 -> 00:00:04,000",
        "00:00:03,000 --&gt; 00:00:04,000",
        "00:00:03,000 ---> 00:00:04,000",
        "00:00:03,000 => 00:00:04,000",
        "00:00:03,000 \u2192 00:00:04,000",
        "00:00:03,000 \u2013> 00:00:04,000",
        "00:00:03,000 \u2014 00:00:04,000",
        "00:00:03,000 00:00:04,000",
        "00:00:03;000 --> 00:00:04;000",
        "00:00:03:000 --> 00:00:04:000",
        "0\uff1a00\uff1a03\uff0c000 --> 0\uff1a00\uff1a04\uff0c000",
        "\u200b00:00:03,000\u00a0-->\u00a000:00:04,000",
        "0:00:03.000,0:00:04.000",
    ],
)
def test_odd_lines_of_times(times: str) -> None:
    found = read(SOUP.format(times))
    assert (simple(found), found.counts) == (THREE, {})
    assert simple(
        read("WEBVTT\n\n" + SOUP.format(times).replace(",", ".") if "," not in times else SOUP.format(times))
    )


@pytest.mark.parametrize(
    "times",
    [
        "00:00:1d,000 --> 00:00:04,000",
        "0O:00:03,000 --> 00:00:04,000",
        "00:00:03,000 -->",
        "--> 00:00:04,000",
        "00:00:03,000",
        "00:00:03,000 --> 00:00:04,0x0",
        "00:00:03:12 --> 00:00:04:12",
        "00h00m03 to 00h00m04".replace("h", ":").replace("m", ":"),
        "0:00:13.f89,0:00:15.489",
    ],
)
def test_unreadable_times_cost_one_cue_and_are_counted(times: str) -> None:
    found = read(SOUP.format(times))
    assert (simple(found), found.counts) == ([THREE[0], THREE[2]], {"cues_bad_times": 1})


def test_sbv_with_an_unreadable_line_of_times() -> None:
    found = read(
        "0:00:00.378,0:00:11.378\none\n\n0:00:13.f89,0:00:15.489\nthree\n\n0:00:15.489,0:00:16.234\nfour\n\n"
        "0:00:17.484,0:00:16.543\nfive"
    )
    assert simple(found) == [(0.378, 11.378, "one"), (15.489, 16.234, "four")]
    assert found.counts == {"cues_bad_times": 2}


def test_what_is_text_stays_text() -> None:
    content = (
        "5:30 - 6:45 we cook\n\nthen 1 --> 2\n\n1999\n\nbring a: b, c: d",
        "10\n\n",
    )
    found = read(
        f"1\n00:00:01,000 --> 00:00:02,000\n{content[0]}\n\n2\n00:00:03,000 --> 00:00:04,000\n{content[1]}"
    )
    assert simple(found) == [
        (1.0, 2.0, "5:30 - 6:45 we cook then 1 --> 2 1999 bring a: b, c: d"),
        (3.0, 4.0, "10"),
    ]
    assert found.counts == {}


def test_numbers_that_are_said() -> None:
    countdown = "".join(f"00:00:0{n},000 --> 00:00:0{n},900\n{9 - n}\n\n" for n in range(1, 5))
    assert [cue.text for cue in read(countdown).cues] == ["8", "7", "6", "5"]
    indexed = "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{9 - n}\n\n" for n in range(1, 5))
    assert [cue.text for cue in read(indexed).cues] == ["8", "7", "6", "5"]


def test_the_ends_of_a_file_are_counted() -> None:
    assert read(STEPS + "5\n").counts == {"blocks_no_time": 1}
    assert simple(read(STEPS + "5\n00:00:05,")) == FOUR
    assert read(STEPS + "5\n00:00:05,").counts == {"cues_bad_times": 1}
    assert read("Subtitles by me\n\nfor you\n\n" + STEPS).counts == {"blocks_no_time": 2}


EMPTY = {
    "nothing": b"",
    "blank": b"\xef\xbb\xbf \r\n\r\n",
    "json3": b'{"wireMagic":"pb3","events":[]}',
    "json3 without events": b'{"wireMagic":"pb3"}',
    "json3 of line breaks": b'{"events":[{"tStartMs":0,"segs":[{"utf8":"\\n"}]}]}',
    "srv3": b'<?xml version="1.0"?><timedtext format="3"><body></body></timedtext>',
    "srv3 of line breaks": b'<timedtext format="3"><body><p t="0" d="9">\n</p></body></timedtext>',
    "srv2": b"<timedtext></timedtext>",
    "srv1": b"<transcript></transcript>",
    "ttml": b'<tt xmlns="http://www.w3.org/ns/ttml"><body><div></div></body></tt>',
    "ttml without body": b'<tt xmlns="http://www.w3.org/ns/ttml"/>',
    "ass": b"[Script Info]\nTitle: x\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n",
    "ssa": b"[Script Info]\nScriptType: v4.00\n",
    "sami": b"<SAMI><BODY></BODY></SAMI>",
    "sami without body": b"<SAMI></SAMI>",
    "microdvd": b"{1}{1}25\n",
    "mpl2": b"[0][1]\n",
    "vtt": b"WEBVTT\n",
    "whisper": b'{"segments":[]}',
    "whisper.cpp": b'{"transcription":[]}',
    "chunks": b'{"text":"","chunks":[]}',
    "tsv": b"start\tend\ttext\n",
    "list": b"[]",
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_file_is_no_fault(kind: str) -> None:
    no_cues(EMPTY[kind])


@pytest.mark.parametrize(
    ("declared", "really"),
    [
        ("utf-8", "utf-8"),
        ("ISO-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
        ("windows-1251", "cp1251"),
        ("shift_jis", "shift_jis"),
        ("EUC-KR", "euc_kr"),
        ("UTF-16", "utf-16"),
        ("UTF-16", "utf-16-be"),
        ("UTF-16", "utf-8"),
        ("ASCII", "utf-8"),
    ],
)
@pytest.mark.parametrize("kind", ["srv1", "ttml"])
def test_xml_is_decoded_as_it_declares(declared: str, really: str, kind: str) -> None:
    word = {"cp1251": "щи", "shift_jis": "出汁", "euc_kr": "김치"}.get(really, "café")
    body = {
        "srv1": f'<transcript><text start="0" dur="1">{word}</text></transcript>',
        "ttml": f'<tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="0s" end="1s">{word}</p></div></body></tt>',
    }[kind]
    content = f"<?xml version='1.0' encoding='{declared}'?>{body}".encode(really)
    assert simple(read(content)) == [(0.0, 1.0, word)]


@pytest.mark.parametrize("name", ["klingon", "punycode", "rot13", "unicode_escape"])
def test_an_unknown_declared_encoding_is_a_fault(name: str) -> None:
    with pytest.raises(
        RowFault, match=f"^bad_subtitles: a declares the encoding '{name}', which does not exist$"
    ):
        read(f'<?xml version="1.0" encoding="{name}"?><transcript/>')


@pytest.mark.parametrize("digits", [5000, 8])
def test_character_numbers_of_any_length(digits: int) -> None:
    code = "&#" + "1" * digits + ";"
    assert simple(read(f"00:00:01,000 --> 00:00:02,000\n{code} a &#0000000039;\n")) == [
        (1.0, 2.0, "\ufffd a '")
    ]
    assert simple(
        read(f"<transcript><text start='0' dur='1'>{code.replace('&', '&amp;')}</text></transcript>")
    )


@pytest.mark.parametrize("kind", ["chapters", "metadata", "Metadata"])
def test_cues_that_are_not_speech(kind: str) -> None:
    said = no_cues(f"WEBVTT\nKind: {kind}\n\n00:00.000 --> 00:10.000\nPart one\n")
    assert said == "no_cues: a has no cue with text; 1 cues_not_speech"


def test_metadata_between_speech() -> None:
    cues = ['{"a": 1, "img": "x.jpg"}', '{\n"b": 2\n}', "sprite.jpg#xywh=0,0,160,90", "{laughs}", "said"]
    lines = "".join(f"00:0{n}.000 --> 00:0{n}.900\n{text}\n\n" for n, text in enumerate(cues))
    found = read("WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000\n\n" + lines)
    assert [cue.text for cue in found.cues] == ["{laughs}", "said"]
    assert found.counts == {"cues_not_speech": 3}


def numbered(*texts: str, gap_s: int = 0, last_s: int = 2) -> str:
    return "".join(
        f"{n}\n00:{n * last_s // 60:02}:{n * last_s % 60:02},000 --> "
        f"00:{(n + 1) * last_s // 60:02}:{(n + 1) * last_s % 60:02},000\n{text}\n\n"
        for n, text in enumerate(texts)
    )


@pytest.mark.parametrize(
    "texts",
    [
        ["stir", "stir", "stir", "and stop"],
        ["la la la", "la la la", "hey you", "la la la", "la la la"],
        ["no", "no", "no"],
        ["let it be", "let it be", "whisper words of wisdom", "let it be"],
        ["stir it up", "stir it up little darling", "stir it up", "stir it up little darling", "come on"],
        ["yes", "yes", "yes we can", "yes", "yes"],
    ],
)
def test_words_really_said_twice_stay(texts: list[str]) -> None:
    found = read(numbered(*texts))
    assert [cue.text for cue in found.cues] == texts
    assert found.counts == {}


def test_rolling_captions_are_still_unrolled() -> None:
    lines = [
        "first we cut",
        "the onion and",
        "the onion and",
        "the salt",
        "then stir",
        "stir",
        "no",
        "no",
        "now eat",
    ]
    shown = [f"{above}\n{line}".strip() for above, line in zip(["", *lines], lines, strict=False)]
    assert " ".join(cue.text for cue in read(numbered(*shown)).cues) == " ".join(lines)


WHISPER_CPP = {
    "systeminfo": "x",
    "model": {"type": "base"},
    "result": {"language": "en"},
    "transcription": [
        {
            "timestamps": {"from": "00:00:00,000", "to": "00:00:01,500"},
            "offsets": {"from": 0, "to": 1500},
            "text": " Chop the onions",
            "tokens": [
                {"text": "[_BEG_]", "offsets": {"from": 0, "to": 0}},
                {"text": " Chop", "offsets": {"from": 0, "to": 400}},
                {"text": " the", "offsets": {"from": 400, "to": 600}},
                {"text": " on", "offsets": {"from": 600, "to": 900}},
                {"text": "ions", "offsets": {"from": 900, "to": 1500}},
            ],
        },
        {"timestamps": {"from": "00:00:02,000", "to": "00:00:03,000"}, "text": " and fry"},
        {"text": "lost"},
    ],
}


def test_whisper_cpp() -> None:
    found = read(json.dumps(WHISPER_CPP))
    assert simple(found) == [(0.0, 1.5, "Chop the onions"), (2.0, 3.0, "and fry")]
    assert [(w.word, w.start_s, w.end_s) for w in found.cues[0].words or ()] == [
        ("Chop", 0.0, 0.4),
        ("the", 0.4, 0.6),
        ("onions", 0.6, 1.5),
    ]
    assert {(cue.source, cue.lang) for cue in found.cues} == {("auto", "en")}
    assert found.counts == {"cues_bad_times": 1}


@pytest.mark.parametrize(
    "wrap", [lambda c: {"text": "all", "chunks": c}, lambda c: c], ids=["pipeline", "list"]
)
def test_chunks_of_transformers(wrap: Callable[[list[object]], object]) -> None:
    chunks = [
        {"timestamp": [0.0, 2.5], "text": " Chop the onions"},
        {"timestamp": [2.5, None], "text": " and"},
        {"timestamp": [3.0, None], "text": " fry"},
        {"text": "no time"},
    ]
    found = read(json.dumps(wrap(chunks)))  # type: ignore[arg-type]
    assert simple(found) == [(0.0, 2.5, "Chop the onions"), (2.5, 3.0, "and"), (3.0, 3.0, "fry")]
    assert found.counts == {"cues_bad_times": 1, "cues_no_duration": 1}


def test_tsv_of_whisper() -> None:
    found = read("start\tend\ttext\r\n0\t2500\tChop the onions\r\n2500\t3000\tand\tfry\r\nx\t1\tlost\r\n")
    assert simple(found) == [(0.0, 2.5, "Chop the onions"), (2.5, 3.0, "and fry")]
    assert (found.cues[0].source, found.counts) == ("auto", {"cues_bad_times": 1})


@pytest.mark.parametrize(
    "content",
    [
        '{"id": "abc", "duration": 5}',
        '[{"id": 1}]',
        "[1, 2]",
        "url\ttext\nhttp://x\ta",
        "<html></html>",
        "words",
    ],
)
def test_a_file_of_something_else(content: str) -> None:
    with pytest.raises(NotSubtitles, match=r"^bad_subtitles: "):
        read(content)
