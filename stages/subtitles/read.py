"""Reads a subtitle file of any known format as cues. The format is detected from the content, not the file name.

Reject codes: bad_subtitles (unknown format, broken, binary, too large), no_cues (readable, but no cue has text).
"""

from __future__ import annotations

import json
import re
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles import transcript_json, youtube_formats
from vlpipe.stages.subtitles.cue import RawCue, Source
from vlpipe.stages.subtitles.rare_formats import (
    TSV_HEAD,
    read_ass,
    read_microdvd,
    read_mpl2,
    read_sami,
    read_tsv,
)
from vlpipe.stages.subtitles.srt_sbv import read_timed
from vlpipe.stages.subtitles.text import decode
from vlpipe.stages.subtitles.time_lines import time_line
from vlpipe.stages.subtitles.track import Merge, Track, track
from vlpipe.stages.subtitles.ttml import local, read_ttml
from vlpipe.stages.subtitles.vtt import read_vtt

MAX_BYTES = 20_000_000  # ten hours of roll-up captions with word times are 5 MB
MAX_WORDS = 1_000_000  # a hundred hours of speech
OTHERWISE = "cp1252"  # encoding of files that are not UTF-8 and have no byte order mark

# The start of a file of a format. WebVTT is tested before these.
STARTS = (
    ("microdvd", re.compile(r"\{ *\d+ *\} *\{ *\d* *\}")),
    ("mpl2", re.compile(r"\[\d+\]\[\d*\]")),
    (
        "ass",
        re.compile(r"\[(Script Info|V4\+? Styles|Events)\]|(;[^\n]*\n\s*)+\[Script Info\]", re.IGNORECASE),
    ),
    ("sami", re.compile(r"<sami\b", re.IGNORECASE)),
    ("tsv", re.compile(rf"{TSV_HEAD}[ \t]*(?:\n|$)")),
)


class NotSubtitles(RowFault):
    """Raised for a file that seems to hold no subtitles at all: an unknown format, or JSON or XML with other content."""


def read_subtitles(
    data: bytes,
    name: str,
    *,
    source: Source = "unknown",
    lang: str | None = None,
    encoding: str = OTHERWISE,
    fps: float | None = None,
    rollup: Merge = "auto",
) -> Track:
    """Reads a subtitle file as a track of cues. Raises RowFault: bad_subtitles, no_cues.

    source, lang: used if the file does not state them. encoding: of a file that is not UTF-8. fps: of the video, for
    formats with frame numbers. rollup: see `track`.
    """
    if len(data) > MAX_BYTES:
        raise RowFault("bad_subtitles", f"{name} has {len(data)} bytes, the limit is {MAX_BYTES}")
    text, _, is_guess = decode(data, name, encoding)
    found = read_found(text, name, fps)
    if is_guess:
        found.counts["decoded_otherwise"] += 1
    num_words = sum(len(one.words) for one in found.shown)
    if num_words > MAX_WORDS:
        raise RowFault("bad_subtitles", f"{name} has {num_words} words, the limit is {MAX_WORDS}")
    return track(found, name, source=source, lang=lang, rollup=rollup)


def read_found(text: str, name: str, fps: float | None = None) -> RawCue:
    """Returns the content of the file before roll-up captions are merged. Raises RowFault (bad_subtitles)."""
    text = text.lstrip("\ufeff \t\n")
    if re.match(r"WEBVTT(?=\s|$)", text):
        return read_vtt(text)
    if not text:
        return RawCue()
    for kind, start in STARTS:
        if start.match(text):
            return _read_kind(kind, text, name, fps)
    if text[:1] in ("{", "["):
        return _read_json(text, name)
    if text[:1] == "<":
        return _read_xml(text, name)
    if any(time_line(line) for line in text.split("\n")):
        return read_timed(text)
    raise NotSubtitles(
        "bad_subtitles", f"{name} is in no known subtitle format; it starts with {text[:40]!r}"
    )


def _read_kind(kind: str, text: str, name: str, fps: float | None) -> RawCue:
    if kind == "microdvd":
        return read_microdvd(text, name, fps)
    read = {"mpl2": read_mpl2, "ass": read_ass, "sami": read_sami, "tsv": read_tsv}
    return read[kind](text)


def _read_json(text: str, name: str) -> RawCue:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault("bad_subtitles", f"{name} is not valid JSON: {error}") from error
    if isinstance(content, list):
        if content and not any(isinstance(one, dict) and TEXT_KEYS & one.keys() for one in content):
            raise NotSubtitles(
                "bad_subtitles",
                f"{name} is a JSON list without subtitles: no entry has text, start or timestamp",
            )
        is_chunks = any(isinstance(one, dict) and "timestamp" in one for one in content)
        return transcript_json.read_chunks(content) if is_chunks else transcript_json.read_list(content)
    for key, read in READERS.items():
        if isinstance(content.get(key), list):
            return read(content)
    if "wireMagic" in content:  # YouTube's file for a video without speech
        return RawCue()
    keys = ", ".join(sorted(content)[:5])
    raise NotSubtitles(
        "bad_subtitles",
        f"{name} is JSON without subtitles: none of {', '.join(READERS)} is a list; it has the keys {keys}",
    )


TEXT_KEYS = frozenset({"text", "start", "timestamp"})
READERS = {
    "events": lambda content: youtube_formats.read_json3(content["events"]),
    "segments": transcript_json.read_whisper,
    "transcription": transcript_json.read_whisper_cpp,
    "chunks": lambda content: transcript_json.read_chunks(content["chunks"]),
}


def _read_xml(text: str, name: str) -> RawCue:
    root = youtube_formats.parse_xml(text, name)
    kind = local(root.tag)
    if kind == "tt":
        return read_ttml(root)
    if kind == "timedtext":
        return youtube_formats.read_timedtext(root)
    if kind == "transcript":
        return youtube_formats.read_srv1(root)
    raise NotSubtitles(
        "bad_subtitles",
        f"{name} is XML without subtitles: its root must be <tt>, <timedtext> or <transcript>, but is <{root.tag[:40]}>",
    )
