"""Reads TTML (also DFXP, its older form) and Apple's lyrics. https://www.w3.org/TR/ttml2/

Elements are known by their local names, as their namespaces differ between versions. Each element is visited once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vlpipe.stages.subtitles.cue import RawCue, plain_words

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
OFFSET = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(h|ms|m|s|f|t)")
CLOCK = re.compile(r"(?:(?:(\d{1,6}):)?(\d{1,2}):)?(\d{1,6}(?:[.,]\d{1,9})?)")
FRAMES = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}):(\d{1,3}(?:\.\d{1,9})?)")
NOT_TEXT = frozenset({"head", "metadata", "title", "desc", "copyright", "agent"})
Time = float | None


def local(name: object) -> str:
    """Returns an XML name without its namespace."""
    return str(name).rpartition("}")[2]


@dataclass(frozen=True, slots=True)
class Rates:
    """Frames and ticks per second. The default of 30 frames is the standard's."""

    frames: float = 30.0
    ticks: float = 1.0

    def seconds(self, text: str | None) -> Time:
        """Returns the seconds of a time such as `00:00:01.5`, `00:00:01:12` (with frames), `1.5s`, `30f`; else None."""
        text = (text or "").strip()
        if found := OFFSET.fullmatch(text):
            unit = {"h": 3600, "m": 60, "s": 1, "ms": 0.001, "f": 1 / self.frames, "t": 1 / self.ticks}[
                found[2]
            ]
            return float(found[1]) * unit
        if found := FRAMES.fullmatch(text):
            hours, minutes, secs, frames = (float(part) for part in found.groups())
            return hours * 3600 + minutes * 60 + secs + frames / self.frames
        if found := CLOCK.fullmatch(text):
            hours, minutes, secs = (float((part or "0").replace(",", ".")) for part in found.groups())
            return hours * 3600 + minutes * 60 + secs
        return None


def rates(attributes: Mapping[str, str]) -> Rates:
    """Returns the rates that the attributes of <tt> state, by their local names."""
    frame = _positive(attributes.get("frameRate"))
    up, _, down = attributes.get("frameRateMultiplier", "").replace(":", " ").strip().partition(" ")
    over, under = _positive(up), _positive(down)
    frames = (frame or 30.0) * (over / under if over and under else 1.0)
    return Rates(frames, _positive(attributes.get("tickRate")) or (frames if frame else 1.0))


def _positive(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text) and float(text) > 0 else None


class Context(NamedTuple):
    """Times that an element passes on to its children.

    start_s: the time to which theirs are relative. end_s: the end of children that state none; None: unknown. known: False
    if the times of the children cannot be computed.
    """

    start_s: float = 0.0
    end_s: Time = None
    known: bool = True


def read_ttml(root: Element) -> RawCue:
    """Reads the paragraphs of <tt>, or the spans with times of a paragraph that has none itself.

    Counts cues_bad_times: no end, times that cannot be read, or inside `timeContainer="seq"`, where the times of an element
    depend on those before it.
    """
    stated = {local(name): value for name, value in root.attrib.items()}
    is_lyrics = any(local(name) == "timing" and "apple.com" in name for name in root.attrib)
    known = rates(stated)
    found = RawCue(lang=root.get(XML_LANG) or None)
    stack: list[tuple[Element, Context]] = [(root, Context())]
    while stack:
        one, context = stack.pop()
        tag = local(one.tag)
        if tag in NOT_TEXT:
            continue
        below = _below(one, context, known)
        if tag == "p" and not (_is_timed(one) or not any(_is_timed(child) for child in one)):
            loose = (one.text or "") + "".join(child.tail or "" for child in one)
            found.counts["cues_bad_times"] += bool(plain_words(loose))
        elif tag == "p" or (tag == "span" and _is_timed(one)):
            text, inner = own_text(one)
            _add(found, below, text)
            stack += [(child, below) for child in reversed(inner)]
            continue
        if is_lyrics:  # times of lines are absolute, not relative to <div>
            below = Context()
        stack += [(child, below) for child in reversed(one)]
    return found


def _add(found: RawCue, span: Context, text: str) -> None:
    if plain_words(text) and (span.end_s is None or not span.known):
        found.counts["cues_bad_times"] += 1
    else:
        found.add(span.start_s, span.end_s or 0.0, text)


def _is_timed(one: Element) -> bool:
    return not {"begin", "end", "dur", "duration"}.isdisjoint(one.attrib)


def _below(one: Element, context: Context, known: Rates) -> Context:
    """Returns the times of an element, which its children inherit. context: those of its parent, to whose start the
    element's times are relative."""
    stated = {
        name: known.seconds(one.get(name))
        for name in ("begin", "end", "dur", "duration")
        if name in one.attrib
    }
    readable = context.known and None not in stated.values()
    start_s = context.start_s + (stated.get("begin") or 0.0)
    ends = [context.start_s + end for end in [stated.get("end")] if end is not None]
    ends += [start_s + length for name in ("dur", "duration") if (length := stated.get(name)) is not None]
    end_s = min(ends) if ends else context.end_s
    return Context(start_s, end_s, readable and one.get("timeContainer", "par") == "par")


def own_text(line: Element, inner: tuple[str, ...] = ("p",)) -> tuple[str, list[Element]]:
    """Returns (text, elements): all text in `line`, except that of the elements named in `inner`; and these elements.

    <br> becomes a line break.
    """
    parts: list[str] = []
    found: list[Element] = []
    stack: list[Element | str] = _content(line)
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            parts.append(one)
        elif local(one.tag) in inner:
            found.append(one)
        elif local(one.tag) == "br":
            parts.append("\n")
        elif local(one.tag) not in NOT_TEXT:
            stack += _content(one)
    return "".join(parts), found


def _content(one: Element) -> list[Element | str]:
    """Returns the children of an element and the texts between them, in reverse order, as a stack."""
    found: list[Element | str] = [one.text or ""]
    for child in one:
        found += [child, child.tail or ""]
    return found[::-1]
