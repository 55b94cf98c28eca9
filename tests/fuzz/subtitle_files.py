"""Subtitle files of all formats, read as a track."""

import json
import math

from kind import Kind, pieces

from vlpipe.stages.subtitles.read import read_subtitles

VTT = (
    b"WEBVTT\nKind: captions\nLanguage: en\n\nNOTE x\n\n1\n00:00:01.000 --> 00:00:02.500 align:start\n"
    b"<v Ann>Hello <00:00:01.500><c>you</c> &amp; me\n\n"
)
SRT = (
    "1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>Hello</i> {\\an8}caf\u00e9\r\n\r\n"
    "2\r\n00:00:03,000 --> 00:00:04,000\r\nyou\r\n"
).encode()
SBV = b"0:00:01.000,0:00:02.500\nHello[br]you\n\n0:00:03.000,0:00:04.000\nagain\n"
ASS_HEAD = (
    b"[Script Info]\nTitle: x\n\n[Events]\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)
ASS = ASS_HEAD + b"Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello{\\i0}\\Nyou\n"
MICRODVD = b"{1}{1}25.0\n{25}{62}{y:i}Hello|you\n"
MPL2 = b"[10][25]/Hello|you\n"
SAMI = (
    b"<SAMI><HEAD><STYLE>.EN { lang: en-US; }</STYLE></HEAD><BODY>"
    b"<SYNC Start=1000><P Class=EN>Hello<br>you<SYNC Start=2500><P>&nbsp;</BODY></SAMI>"
)
TTML = (
    b'<?xml version="1.0" encoding="UTF-8"?><tt xmlns="http://www.w3.org/ns/ttml" xml:lang="en"><body><div>'
    b'<p begin="1s" end="2.5s">Hello<br/><span>you</span></p></div></body></tt>'
)
SRV3 = (
    b'<timedtext format="3"><body><w t="0" id="1"/><p t="1000" d="1500" w="1"><s>Hello</s><s t="500"> you</s></p>'
    b"</body></timedtext>"
)
SRV1 = b'<transcript><text start="1" dur="1.5">Hello &amp;#39;you</text></transcript>'
SEGS = [{"utf8": "a"}, {"utf8": " b", "tOffsetMs": 9}]
WORDS = [{"word": " Hello", "start": 1.0, "end": 1.5, "probability": 0.9}]
JSON = (
    {"wireMagic": "pb3", "events": [{"tStartMs": 1000, "dDurationMs": 1500, "segs": SEGS}]},
    {"language": "en", "segments": [{"start": 1.0, "end": 2.5, "text": " Hello", "words": WORDS}]},
    {"transcription": [{"offsets": {"from": 1000, "to": 2500}, "text": " Hello"}]},
    {"text": "a", "chunks": [{"timestamp": [1.0, None], "text": " Hello"}]},
    [{"text": "Hello", "start": 1.0, "duration": 1.5}, {"text": "you", "start": 3, "end": 4}],
)
TSV = b"start\tend\ttext\n1000\t2500\tHello\n2500\t3000\tyou\n"
CUE = b"WEBVTT\n\n00:00:00.000 --> 01:00:00.000\n"


def read(data: bytes) -> None:
    for cue in read_subtitles(data, "it", fps=25.0).cues:
        assert 0 <= cue.start_s <= cue.end_s < math.inf, cue


KIND = Kind(
    name="subtitles",
    read=read,
    seeds=(
        VTT,
        SRT,
        SBV,
        ASS,
        MICRODVD,
        MPL2,
        SAMI,
        TTML,
        SRV3,
        SRV1,
        TSV,
        *(json.dumps(one).encode() for one in JSON),
    ),
    pieces=pieces(
        "00:00:01.000 --> 00:00:02.000\n¦\n00:00:01,000 --> 00:00:02,000\na\n\n¦<00:00:01.000>¦a ¦the ¦"
        "NOTE x\n\n¦STYLE\n¦REGION\n¦-->¦<c>¦</c>¦<v Ann>¦&amp;¦&#¦&#x1;¦1\n¦1:¦"
        "0:00:00.000,0:00:01.000\na\n\n¦[br]¦Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,a\n¦"
        "{\\p1}¦{\\¦{1}{2}a\n¦{y:i}¦{¦}¦[1][2]a\n¦/a|¦|¦;¦<SYNC Start=1>¦<P>¦<P ¦<br>¦<!--¦-->¦<tt ¦"
        '<div>¦</div>¦<p begin="0s" end="1s">¦</p>¦<span>¦</span>¦<p t="0" d="9">¦<s t="1">¦'
        '</s>¦<text start="0" dur="1">¦</text>¦.a { lang: ¦[¦]¦{}¦[],¦"a",¦{"a":¦'
        '{"utf8":"a","tOffsetMs":1},¦{"word":"a","start":1,"end":2},¦'
        '{"text":"a","start":0,"end":1},¦\\N¦1\t2\ta\n'
    ),
    frames=(
        *(
            (CUE, b"\n"),
            (CUE + b"a", b"\n"),
            (b"WEBVTT\n\n", b""),
            (b"WEBVTT\n\n<", b"\n00:00.000 --> 00:01.000\na\n"),
        ),
        *(
            (b"1\n00:00:00,000 --> 00:00:01,000\n", b"x\n"),
            (b"", b"1\n00:00:00,000 --> 00:00:01,000\na\n"),
            (b"hello\n", b"-->"),
        ),
        *(
            (ASS_HEAD, b""),
            (ASS[:-1], b"\n"),
            (b"[Events]\nFormat: ", b"Text\n"),
            (b"{1}{1}25\n{1}{2}", b"\n"),
            (b"[1][2]", b"\n"),
        ),
        *(
            (b"<SAMI><BODY>", b""),
            (b"<SAMI ", b">"),
            (b"<SAMI><STYLE>", b"</STYLE>"),
            (b"<SAMI><BODY><SYNC Start=", b">a"),
        ),
        *(
            (b'<tt xmlns="http://www.w3.org/ns/ttml"><body><div>', b"</div></body></tt>"),
            (b"<tt><!-- ", b"--></tt>"),
        ),
        *(
            (b'<timedtext format="3"><body>', b"</body></timedtext>"),
            (b"<transcript>", b"</transcript>"),
            (b"<timedtext ", b"/>"),
        ),
        *(
            (b'{"events":[{"tStartMs":0,"dDurationMs":99999,"segs":[', b'{"utf8":"a"}]}]}'),
            (b"[", b"{}]"),
            (b"[", b""),
        ),
        *(
            (b'{"segments":[{"start":0,"end":9,"text":"a","words":[', b"{}]}]}"),
            (b'{"segments":[', b"{}]}"),
            (b'{"transcription":[', b"1]}"),
        ),
        *((b"start\tend\ttext\n", b""), (b"", b"")),
    ),
)
