"""Roll-up captions of known words, as YouTube makes them."""

from __future__ import annotations

import random
from typing import NamedTuple


class Said(NamedTuple):
    start_s: float
    word: str


class Line(NamedTuple):
    words: list[Said]
    end_s: float
    clears: bool  # a pause before it: the line above is gone


# Few words, so that the end of one line often is the beginning of the next.
VOCABULARY = ["very", "very", "no", "the", "cat", "a", "salt", "[Music]", ">>"]


def speak(seed: int, num_lines: int = 40, vocabulary: list[str] | None = None) -> list[Line]:
    """Lines of 1 to 7 words; times in whole milliseconds."""
    rng, now = random.Random(seed), 0
    lines: list[Line] = []
    for _ in range(num_lines):
        pause = rng.random() < 0.2
        now += rng.randint(600, 5000) if pause else 0
        words = []
        for _ in range(rng.randint(1, 7)):
            words.append(Said(now / 1000, rng.choice(vocabulary or VOCABULARY)))
            now += rng.randint(30, 700)
        now += rng.randint(20, 300)
        lines.append(Line(words, now / 1000, pause))
        now += 10
    return lines


def truth(lines: list[Line]) -> list[str]:
    return [said.word for line in lines for said in line.words]


class Screen(NamedTuple):
    start_s: float
    end_s: float
    above: str  # the line carried over
    line: Line
    settled: bool  # the line stands alone for 10 ms, before the next one comes


def screens(lines: list[Line], *, settle: bool = True) -> list[Screen]:
    found = []
    above = ""
    for line in lines:
        above = "" if line.clears else above
        found.append(Screen(line.words[0].start_s, line.end_s, above, line, False))
        above = " ".join(said.word for said in line.words)
        if settle:
            found.append(Screen(line.end_s, round(line.end_s + 0.01, 3), "", line, True))
    return found


def clock(seconds: float, point: str = ".") -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def escaped(word: str) -> str:
    return word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def vtt(lines: list[Line]) -> bytes:
    """As `yt-dlp --write-auto-subs` saves them: an empty upper or lower line is one space."""
    out = ["WEBVTT", "Kind: captions", "Language: en", ""]
    for one in screens(lines):
        out.append(f"{clock(one.start_s)} --> {clock(one.end_s)} align:start position:0%")
        first, *rest = one.line.words
        plain = " ".join(escaped(said.word) for said in one.line.words)
        tagged = escaped(first.word)
        tagged += "".join(f"<{clock(s.start_s)}><c> {escaped(s.word)}</c>" for s in rest)
        out += [plain, " ", ""] if one.settled else [escaped(one.above) or " ", tagged, ""]
    return "\n".join(out).encode()


def srt(lines: list[Line], *, settle: bool = True) -> bytes:
    """The same after `--convert-subs srt`: no word times."""
    out = []
    for number, one in enumerate(screens(lines, settle=settle), 1):
        text = " ".join(said.word for said in one.line.words)
        shown = [part for part in (one.above, text) if part]
        out += [str(number), f"{clock(one.start_s, ',')} --> {clock(one.end_s, ',')}", *shown, ""]
    return "\n".join(out).encode()


def lists(lines: list[Line]) -> dict[str, list[object]]:
    """The same in the shape of HowTo100M's raw_caption.json."""
    every = screens(lines)
    texts = [(one.above + "\n" + " ".join(said.word for said in one.line.words)).strip() for one in every]
    return {"text": [*texts], "start": [one.start_s for one in every], "end": [one.end_s for one in every]}
