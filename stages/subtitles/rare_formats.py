"""The rarer formats, read by pysubs2: ass, ssa, sami, ttml, microdvd, mpl2. https://github.com/tkarabela/pysubs2"""

from __future__ import annotations

import re
import warnings
from typing import Any

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.subtitles.cue import RawCue
from vlpipe.stages.subtitles.text import plain

FPS_LINE = re.compile(
    r"\{[01]\}\{[01]\}\s*(\d+(?:\.\d+)?)\s*(?:\n|$)"
)  # the first line of some microdvd files
APPLE_DIV = re.compile(
    r"""(<div\b[^>]*?)\sbegin=["'][^"']*["']"""
)  # lyrics: the lines' own times are absolute
LANGUAGE = re.compile(r"""<tt\b[^>]*?\sxml:lang=["']([^"']+)["']""")


def read_other(text: str, name: str, kind: str, fps: float | None) -> RawCue:
    """kind: pysubs2's name of the format. fps: of the video, for formats that count frames.

    ttml must have passed `parse_xml`. RowFault: bad_subtitles."""
    if kind == "ttml" and "itunes:timing=" in text:
        text = APPLE_DIV.sub(r"\1", text)
    if kind == "microdvd" and (says := FPS_LINE.match(text)):
        text, fps = text[says.end() :], float(says[1])
    pysubs2 = need_pysubs2()
    try:
        with warnings.catch_warnings():  # of odd styles, which are not read here
            warnings.simplefilter("ignore")
            file = pysubs2.SSAFile.from_string(text, format_=kind, fps=fps)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # a parser of strangers' files, which raises what it meets
        said = f"{type(error).__name__}: {error}"[:200]
        raise RowFault("bad_subtitles", f"{name} cannot be read as {kind}: {said}") from error
    language = LANGUAGE.search(text) if kind == "ttml" else None
    found = RawCue(lang=language[1] if language else None)
    events = list(file)
    for event, after in zip(events, [*events[1:], None], strict=True):
        # sami has no ends: a text stays until the next one, which may be empty; pysubs2 guesses by its length
        end = after.start if kind == "sami" and after else event.end
        if not (event.is_comment or event.is_drawing):
            found.add(event.start / 1000, end / 1000, plain(event.plaintext))
    return found


def need_pysubs2() -> Any:
    """The module `pysubs2`, or the line that installs it."""
    try:
        import pysubs2
    except ImportError as error:
        raise VlpipeError("subtitles of this format need pysubs2: pip install 'vlpipe[video]'") from error
    return pysubs2
