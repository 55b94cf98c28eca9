"""Reads YouTube's own formats: json3 and srv3 (with word times), srv2, and srv1, which transcript tools write as well.

The formats are those saved by yt-dlp (`--sub-format json3/srv3/...`); YouTube does not document them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.texts import unescape
from vlpipe.stages.subtitles.cue import RawCue, plain_words
from vlpipe.stages.subtitles.text import plain
from vlpipe.stages.subtitles.ttml import local, own_text
from vlpipe.stages.subtitles.word_times import Piece, timed_words

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LINES = ("p", "text")


def number(value: Any) -> float | None:
    """Returns a JSON number, or a number in text, as float; None for anything else. NaN stays NaN; `RawCue.add` drops it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def read_json3(events: Sequence[Any]) -> RawCue:
    """Reads `events` of {tStartMs, dDurationMs, segs: [{utf8, tOffsetMs, acAsrConf}]}; events without text are ignored.

    Recognised speech stays on screen while the next line appears: its cues are cut at the start of the next one.
    """
    found = RawCue()
    with_text = [one for one in events if isinstance(one, Mapping) and _segments(one)]
    found.auto = any("tOffsetMs" in seg or "acAsrConf" in seg for one in with_text for seg in _segments(one))
    starts = [number(one.get("tStartMs")) for one in with_text]
    for one, start, after in zip(with_text, starts, [*starts[1:], None][: len(starts)], strict=True):
        if start is None:
            found.counts["cues_bad_times"] += 1
            continue
        end = _end(start, number(one.get("dDurationMs")), after, cut=found.auto)
        pieces = [(seg.get("utf8"), number(seg.get("tOffsetMs"))) for seg in _segments(one)]
        _add(found, start, end, [(str(text or ""), at) for text, at in pieces])
    return found


def _end(start: float, length: float | None, after: float | None, *, cut: bool) -> float:
    """Returns the end of a line; all in ms. after: start of the next line, None for the last one or if not known.

    A line without a length lasts until the next one; the last one has no duration then. cut: a line ends at the latest when
    the next one starts, unless that starts earlier or together with it.
    """
    end = start + length if length is not None else start if after is None else after
    return after if cut and after is not None and start < after < end else end


def _segments(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the segments of an event, or none if all their texts are blank (windows and line breaks)."""
    segs = event.get("segs")
    found = [seg for seg in segs if isinstance(seg, Mapping)] if isinstance(segs, list) else []
    return found if any(plain_words(str(seg.get("utf8") or "")) for seg in found) else []


def _add(found: RawCue, start: float, end: float, parts: Sequence[tuple[str, float | None]]) -> None:
    """Adds a cue; times in ms. parts: (text, offset from the start in ms; None: as in `Piece`)."""
    cue = (start / 1000, end / 1000)
    if not found.auto:
        found.add(*cue, "".join(text for text, _ in parts))
        return
    pieces = [Piece(None if at is None else (start + at) / 1000, text) for text, at in parts]
    words, spoken = timed_words(pieces, cue)
    found.counts["cues_bad_word_times"] += bool(words) and not spoken
    found.add_words(*cue, words, spoken)


def read_timedtext(root: Element) -> RawCue:
    """Reads srv3: <timedtext format="3"><body><p t="ms" d="ms"><s t="ms after">word</s>, or srv2: <text t="ms" d="ms">."""
    found = RawCue(lang=root.get("lang"))
    lines = [(one, _parts(one)) for one in root.iter() if local(one.tag) in LINES]
    # Lines without text are line breaks and window definitions.
    with_text = [(one, parts) for one, parts in lines if plain_words("".join(part.text for part in parts))]
    found.auto = any(part.is_auto for _, parts in with_text for part in parts)
    starts = [number(one.get("t")) for one, _ in with_text]
    for (one, parts), start, after in zip(with_text, starts, [*starts[1:], None][: len(starts)], strict=True):
        if start is None:
            found.counts["cues_bad_times"] += 1
            continue
        end = _end(start, number(one.get("d")), after, cut=found.auto)
        _add(found, start, end, [(part.text, part.offset) for part in parts])
    return found


class Part(NamedTuple):
    """A piece of a line. offset: its time after the line's start in ms; is_auto: it has signs of speech recognition."""

    text: str
    offset: float | None = None
    is_auto: bool = False


def _parts(line: Element) -> list[Part]:
    """Returns the pieces of a line, except those of lines nested in it: `read_timedtext` reads these by themselves."""
    found = [Part(line.text or "")]
    for one in line:
        if local(one.tag) not in LINES:
            text = "\n" if local(one.tag) == "br" else own_text(one, LINES)[0]
            auto = local(one.tag) == "s" and bool(one.get("t") or one.get("ac"))
            found.append(Part(text, number(one.get("t")), auto))
        found.append(Part(one.tail or ""))
    return found


def read_srv1(root: Element) -> RawCue:
    """Reads <transcript><text start="s" dur="s">, in seconds; texts are escaped twice: `&amp;#39;` is `'`."""
    found = RawCue()
    for one in root.iter():
        if local(one.tag) not in LINES:
            continue
        start, length = number(one.get("start")), number(one.get("dur"))
        if start is None:
            found.counts["cues_bad_times"] += 1
        else:
            found.add(start, start + (length or 0.0), plain(unescape(own_text(one, LINES)[0])))
    return found


def parse_xml(text: str, name: str) -> Element:
    """Returns the root element. Raises RowFault (bad_subtitles) for broken XML, and for documents that declare entities,
    whose expansion has no limit."""
    from xml.etree import ElementTree

    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise RowFault(
            "bad_subtitles",
            f"{name} is refused: its XML declares a document type or entities, which subtitles must not",
        )
    try:
        return ElementTree.fromstring(text)  # the declared encoding is ignored: it is decoded already
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise RowFault("bad_subtitles", f"{name} is not valid XML: {error}") from error
