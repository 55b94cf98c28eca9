"""Reads the rarer formats: ass and ssa, sami, microdvd, mpl2, and Whisper's tsv. Each line is visited once.

pysubs2 reads most of them too, but takes quadratic time for some texts, drops unknown lines without a word, and fails for
a whole file because of one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.cue import RawCue, Span, plain_words
from vlpipe.stages.subtitles.text import plain, seconds

OVERRIDE = re.compile(r"(\{[^{}]*\})")
DRAWING = re.compile(r"\\p(\d)")  # {\p1}: the text is a drawing, until {\p0}
ASS_FIELDS = ("layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text")
SYNC = re.compile(r"<sync\b([^<>]*)>", re.IGNORECASE)
SYNC_START = re.compile(r"\bstart\s{0,9}=\s{0,9}[\"']?\s{0,9}(-?\d{1,12})", re.IGNORECASE)
PARAGRAPH = re.compile(r"<p\b([^<>]*)>", re.IGNORECASE)
CLASS = re.compile(r"\bclass\s{0,9}=\s{0,9}[\"']?([\w-]{1,60})", re.IGNORECASE)
BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
SAMI_END = re.compile(r"</(?:body|sami)\s{0,9}>", re.IGNORECASE)
MICRODVD = re.compile(r"[ \t]{0,9}\{ {0,9}(\d{1,12}) {0,9}\} {0,9}\{ {0,9}(\d{0,12}) {0,9}\}(.*)")
MICRODVD_STYLE = re.compile(r"\{[A-Za-z]:[^{}]*\}")
MPL2 = re.compile(r"[ \t]{0,9}\[(\d{1,12})\]\[(\d{0,12})\](.*)")
ITALICS = re.compile(r"(?:^|(?<=\n))[ \t]{0,9}/")  # a line that starts with a slash
TSV_HEAD = "start\tend\ttext"


def read_ass(text: str) -> RawCue:
    """Reads ass or ssa, without comments and drawings. http://www.tcax.org/docs/ass-specs.htm"""
    found, section = RawCue(), ""
    fields: tuple[str, ...] = ASS_FIELDS
    for line in text.split("\n"):
        key, _, value = line.strip().partition(":")
        if line.startswith("[") and line.rstrip().endswith("]"):
            section = line.strip().lower()
        elif key.lower() == "format" and section == "[events]":
            fields = tuple(name.strip().lower() for name in value.split(",")[:40])
        elif key.lower() == "dialogue":
            cells = dict(zip(fields, value.split(",", len(fields) - 1), strict=False))
            start_s, end_s = (seconds(cells.get(name, "").strip()) for name in ("start", "end"))
            if start_s is None or end_s is None:
                found.counts["cues_bad_times"] += 1
            else:
                found.add(start_s, end_s, plain(_ass_text(cells.get("text", ""))))
        elif (
            section == "[events]" and line.strip() and key.lower() not in ASS_UNSAID and line[:1] not in ";!"
        ):
            found.counts["blocks_no_time"] += 1
    return found


ASS_UNSAID = frozenset({"comment", "picture", "sound", "movie", "command"})


def _ass_text(text: str) -> str:
    drawing, said = False, []
    for part in OVERRIDE.split(text):
        if part.startswith("{") and part.endswith("}"):
            for level in DRAWING.findall(part):
                drawing = level != "0"
        elif not drawing:
            said.append(part)
    return "".join(said).replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")


def read_sami(text: str) -> RawCue:
    """Reads SAMI. A text lasts until the next one of its class, which may be blank; the last one 0.5 s + 67 ms a character.

    Classes are languages: only texts of the class of the first text, or without a class, are read. cues_other_class counts
    the others.
    """
    parts = SYNC.split(_without_comments(text))[1:]  # the first is the head
    found, shown = RawCue(), list[tuple[str, float, str]]()  # class, start in seconds, text
    for attributes, content in zip(parts[::2], parts[1::2], strict=True):
        start = SYNC_START.search(attributes)
        first, *paragraphs = PARAGRAPH.split(SAMI_END.split(content)[0])
        said = [("", first)] if plain_words(plain(first)) or not paragraphs else []
        for more, piece in zip(paragraphs[::2], paragraphs[1::2], strict=True):
            name = CLASS.search(more)
            said.append((name[1].lower() if name else "", piece))
        for name_, piece in said:
            if start is None:
                found.counts["cues_bad_times"] += 1
            else:
                shown.append((name_, int(start[1]) / 1000, plain(BREAK.sub("\n", piece))))
    first_class = next((name for name, _, piece in shown if plain_words(piece)), "")
    mine = [(start_s, piece) for name, start_s, piece in shown if name in (first_class, "")]
    found.counts["cues_other_class"] += sum(
        name not in (first_class, "") and bool(plain_words(piece)) for name, _, piece in shown
    )
    for (start_s, piece), after in zip(mine, [*mine[1:], None][: len(mine)], strict=True):
        if plain_words(piece):
            found.add(start_s, after[0] if after else start_s + 0.5 + 0.067 * len(piece.strip()), piece)
    return found


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0:
        end = text.find("-->", start + 4)
        if end < 0:
            break
        kept.append(text[at:start])
        at = end + 3
    return "".join(kept) + text[at:]


def read_microdvd(text: str, name: str, fps: float | None) -> RawCue:
    """Reads {frame}{frame}text. fps: of the video, None: unknown; a first line such as {1}{1}25.0 replaces it.

    Raises RowFault (bad_subtitles) if neither states a frame rate.
    """
    first, _, rest = text.partition("\n")
    stated = MICRODVD.match(first)
    if (
        stated
        and stated[1] in "01"
        and stated[2] in "01"
        and re.fullmatch(r"\s{0,9}\d{1,6}([.,]\d{1,9})?\s*", stated[3])
    ):
        text, fps = rest, float(stated[3].strip().replace(",", "."))
    if not fps or not fps > 0:
        raise RowFault(
            "bad_subtitles",
            f"{name} is a MicroDVD file, which has frame numbers, and neither it nor the video states a frame rate",
        )
    rate = fps
    return _framed(text, MICRODVD, lambda frame: frame / rate, lambda said: MICRODVD_STYLE.sub("", said))


def read_mpl2(text: str) -> RawCue:
    """Reads [tenths of a second][tenths of a second]text."""
    return _framed(text, MPL2, lambda tenths: tenths / 10, lambda said: said)


def _framed(
    text: str, pattern: re.Pattern[str], to_s: Callable[[int], float], clean: Callable[[str], str]
) -> RawCue:
    """Reads lines in which the groups of `pattern` are start, end and text. `|` is a line break.

    to_s: start or end -> seconds; clean: removes the format's own markup from a text. A text without an end lasts until the
    next one; the last one has no duration then. Other lines are counted in blocks_no_time.
    """
    found, read = RawCue(), list[tuple[float, float | None, str]]()
    for line in text.split("\n"):
        if parts := pattern.match(line):
            said = ITALICS.sub("", clean(parts[3]).replace("|", "\n"))
            read.append((to_s(int(parts[1])), to_s(int(parts[2])) if parts[2] else None, plain(said)))
        else:
            found.counts["blocks_no_time"] += bool(line.strip())
    for (start_s, end_s, said), after in zip(read, [*read[1:], None][: len(read)], strict=True):
        found.add(start_s, end_s if end_s is not None else after[0] if after else start_s, said)
    return found


def read_tsv(text: str) -> RawCue:
    """Reads Whisper's tsv: a header, then start and end in ms, and the text."""
    found = RawCue(auto=True)
    for line in text.split("\n")[1:]:
        cells = line.split("\t", 2)
        times = _ms(cells)
        if times is not None and len(cells) == 3:
            found.add(*times, plain(cells[2]))
        elif line.strip():
            found.counts["cues_bad_times"] += 1
    return found


def _ms(cells: Sequence[str]) -> Span | None:
    numbers = [
        cell.strip() for cell in cells[:2] if re.fullmatch(r"\s{0,9}\d{1,12}(\.\d{1,9})?\s{0,9}", cell)
    ]
    return (float(numbers[0]) / 1000, float(numbers[1]) / 1000) if len(numbers) == 2 else None
