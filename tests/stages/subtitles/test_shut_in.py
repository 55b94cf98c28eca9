"""Subtitle files are read in a process of their own: the same cues, and one fault for whatever happens to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles import read as reading
from vlpipe.stages.subtitles.read import NotSubtitles, read_subtitles
from vlpipe.stages.subtitles.shut_in import SubtitleReader

MORE: dict[str, Any] = {"source": "manual", "lang": "en", "encoding": "cp1252", "fps": 25.0, "rollup": "auto"}
FILES = {
    "vtt": b"WEBVTT\nLanguage: de\n\n00:01.000 --> 00:03.000\na <00:02.000>b\n",
    "srt": "1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode("cp1252"),
    "ttml": '<?xml version="1.0" encoding="shift_jis"?><tt><body><p begin="1s" end="2s">出汁</p></body></tt>'.encode(
        "shift_jis"
    ),
    "microdvd": b"{25}{50}a",
}


@pytest.fixture
def reader() -> Iterator[SubtitleReader]:
    one = SubtitleReader(20, 512)
    yield one
    one.close()


def test_the_same_cues_as_in_this_process(reader: SubtitleReader) -> None:
    for kind, content in FILES.items():
        assert reader.read(content, kind, **MORE) == read_subtitles(content, kind, **MORE)


def test_the_same_faults(reader: SubtitleReader) -> None:
    with pytest.raises(NotSubtitles, match=r"^bad_subtitles: a is JSON without subtitles: "):
        reader.read(b'{"id": 1}', "a", **MORE)
    with pytest.raises(RowFault, match=r"^no_cues: a has no cue with text$") as caught:
        reader.read(b"WEBVTT", "a", **MORE)
    assert not isinstance(caught.value, NotSubtitles)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_it_has_no_files_and_no_secrets(reader: SubtitleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    reader.read(FILES["vtt"], "a", **MORE)
    process = Path("/proc") / str(reader._child.start().pid)
    assert b"hidden" not in (process / "environ").read_bytes()
    assert sorted(os.listdir(process / "fd")) == ["0", "1", "2"]


@pytest.mark.slow
def test_a_reader_that_hangs_or_dies(reader: SubtitleReader) -> None:
    reader._child.start().kill()
    assert len(reader.read(FILES["srt"], "a", **MORE).cues) == 1  # started again
    reader._timeout_s = 0.2
    reader._child.start().send_signal(signal.SIGSTOP)
    for size in (10, 3_000_000):  # more than a pipe holds
        with pytest.raises(RowFault, match=r"^bad_subtitles: a: reading it took more than 0.2 s$"):
            reader.read(b"a" * size, "a", **MORE)
        reader._timeout_s = 60
        assert len(reader.read(FILES["srt"], "a", **MORE).cues) == 1
        reader._timeout_s = 0.2
        reader._child.start().send_signal(signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is limited on Linux only")
def test_memory_is_limited() -> None:
    reader = SubtitleReader(60, 1)
    with pytest.raises(RowFault, match=r"^bad_subtitles: "):
        reader.read(b"[" + b'{"text": "a", "start": 1, "end": 2},' * 200_000 + b"1]", "a", **MORE)
    reader.close()


def test_the_number_of_words_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_WORDS", 3)
    with pytest.raises(RowFault, match=r"^bad_subtitles: a has 4 words, the limit is 3$"):
        read_subtitles(b"00:00:01,000 --> 00:00:02,000\na b c d\n", "a")


HEAD = "[Script Info]\n[Events]\nFormat: Layer, Start, End, Style, Text\nDialogue: 0,0:00:00.00,0:00:01.00,D,"
HOSTILE: dict[str, Callable[[int], str]] = {
    "ttml, <tt in a comment": lambda n: "<tt><!-- " + "<tt " * n + "--></tt>",
    "ttml, <div in a comment": lambda n: "<tt><!-- " + "<div " * n + "--></tt>",
    "ttml, nested p": lambda n: "<tt><body>" + '<p begin="0s" end="1s">a' * n + "</p>" * n + "</body></tt>",
    "ttml, nested spans": lambda n: (
        "<tt><body><p>" + '<span begin="0s" end="1s">a' * n + "</span>" * n + "</p></body></tt>"
    ),
    "srv3, nested p": lambda n: (
        '<timedtext format="3"><body>' + '<p t="0" d="9">a' * n + "</p>" * n + "</body></timedtext>"
    ),
    "srv1, nested text": lambda n: (
        "<transcript>" + '<text start="0" dur="1">a' * n + "</text>" * n + "</transcript>"
    ),
    "ass, drawings": lambda n: HEAD + "{\\p1}a" * n,
    "ass, braces": lambda n: HEAD + "{" * n,
    "microdvd, braces": lambda n: "{1}{1}25\n{1}{2}" + "{" * n,
    "microdvd, styles": lambda n: "{1}{1}25\n{1}{2}" + "{y:i}" * n,
    "mpl2, slashes": lambda n: "[1][2]" + "/a|" * n,
    "sami, comments": lambda n: "<SAMI><BODY>" + "<!--" * n,
    "sami, tags in one text": lambda n: "<SAMI><SYNC Start=1><P>" + "<b>a" * n,
    "cr without end": lambda n: "WEBVTT" + "\r" * n + "x",
    "srt, index numbers": lambda n: "1\n00:00:00,000 --> 00:00:01,000\na\n\n" + "2\n\n" * n,
    "a line of colons": lambda n: "1\n00:00:00,000 --> 00:00:01,000\n" + "1:" * n,
}


@pytest.mark.slow
def test_hostile_files_take_linear_time() -> None:
    """Contents of up to 1 MB that take minutes where the time is quadratic, in a process that is ended after 30 s each."""
    reader, said = SubtitleReader(30, 1024), []
    for kind, content in HOSTILE.items():
        try:
            reader.read(content(30_000).encode(), kind, **MORE)
        except RowFault as fault:
            said.append(fault.detail)
    reader.close()
    assert [detail for detail in said if "took more than" in detail or "died" in detail] == []
