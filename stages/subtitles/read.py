"""Read a subtitle file of any known format as cues. The format is detected from the content, not the file name.

Reject codes: bad_subtitles (unknown format, broken, binary, too large), no_cues (readable, but no cue has text).
"""

from __future__ import annotations

import json
import re
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles import srt_sbv, transcript_json, youtube_formats
from vlpipe.stages.subtitles.cue import RawCue, Source
from vlpipe.stages.subtitles.rare_formats import read_other
from vlpipe.stages.subtitles.text import decode
from vlpipe.stages.subtitles.track import Merge, Track, track
from vlpipe.stages.subtitles.vtt import read_vtt

MAX_BYTES = 50_000_000  # ten hours of roll-up captions with word times are 5 MB
OTHERWISE = "cp1252"  # encoding of files that are not UTF-8 and have no byte order mark

# pysubs2's name of a format, and a pattern for the start of such a file. WebVTT is tested before these.
STARTS = (
    ("microdvd", re.compile(r"\{\d+\}\{\d*\}")),
    ("mpl2", re.compile(r"\[\d+\]\[\d*\]")),
    (
        "ass",
        re.compile(r"\[(Script Info|V4\+ Styles|Events)\]|(;[^\n]*\n\s*)+\[Script Info\]", re.IGNORECASE),
    ),
    ("sami", re.compile(r"<sami\b", re.IGNORECASE)),
)
SRT = re.compile(r"^[ \t]*\d[\d:.,]*[ \t]*-->[ \t]*\d", re.MULTILINE)
SBV = re.compile(rf"^{srt_sbv.SBV_TIMES.pattern}$", re.MULTILINE)


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
    """Read a subtitle file as a track of cues. Raises RowFault: bad_subtitles, no_cues.

    source, lang: used if the file does not state them. encoding: of a file that is not UTF-8. fps: of the video, for
    formats with frame numbers. rollup: see `track`.
    """
    if len(data) > MAX_BYTES:
        raise RowFault("bad_subtitles", f"{name} has {len(data)} bytes, the limit is {MAX_BYTES}")
    text, used = decode(data, name, encoding)
    found = read_found(text, name, fps)
    if used == encoding and used != "utf-8":
        found.counts["decoded_otherwise"] += 1
    return track(found, name, source=source, lang=lang, rollup=rollup)


def read_found(text: str, name: str, fps: float | None = None) -> RawCue:
    """Returns the content of the file before roll-up captions are merged. Raises RowFault (bad_subtitles)."""
    text = text.lstrip("\ufeff \t\n")
    if re.match(r"WEBVTT(?=\s|$)", text):
        return read_vtt(text)
    for kind, start in STARTS:
        if start.match(text):
            return read_other(text, name, kind, fps)
    if text[:1] in ("{", "["):
        return _read_json(text, name)
    if text[:1] == "<":
        return _read_xml(text, name)
    if SRT.search(text):
        return srt_sbv.read_srt(text)
    if SBV.search(text):
        return srt_sbv.read_sbv(text)
    raise RowFault("bad_subtitles", f"{name} has an unknown format; it starts with {text[:40]!r}")


def _read_json(text: str, name: str) -> RawCue:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault("bad_subtitles", f"{name} is broken JSON: {error}") from error
    if isinstance(content, list):
        return transcript_json.read_list(content)
    if isinstance(content.get("events"), list):
        return youtube_formats.read_json3(content["events"])
    if isinstance(content.get("segments"), list):
        return transcript_json.read_whisper(content)
    keys = ", ".join(sorted(content)[:5])
    raise RowFault(
        "bad_subtitles", f"{name}: wanted JSON with `events` or `segments`, or a list; it has {keys}"
    )


def _read_xml(text: str, name: str) -> RawCue:
    root = youtube_formats.parse_xml(text, name)
    if root.tag.rpartition("}")[2] == "tt":
        return read_other(text, name, "ttml", None)
    if root.tag == "timedtext":
        return youtube_formats.read_timedtext(root)
    if root.tag == "transcript":
        return youtube_formats.read_srv1(root)
    raise RowFault(
        "bad_subtitles",
        f"{name}: wanted XML with root <tt>, <timedtext> or <transcript>, got <{root.tag[:40]}>",
    )
