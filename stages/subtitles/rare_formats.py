"""Read the rarer formats with pysubs2: ass, ssa, sami, ttml, microdvd, mpl2. https://github.com/tkarabela/pysubs2"""

from __future__ import annotations

import re
import warnings
from typing import Any

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.subtitles.cue import RawCue
from vlpipe.stages.subtitles.text import plain

FPS_LINE = re.compile(
    r"\{[01]\}\{[01]\}\s*(\d+(?:\.\d+)?)\s*(?:\n|$)"
)  # the first line of some microdvd files: the frame rate
APPLE_DIV = re.compile(
    r"""(<div\b[^>]*?)\sbegin=["'][^"']*["']"""
)  # removed in Apple's lyrics, because their lines have absolute times, not relative to <div>
LANGUAGE = re.compile(r"""<tt\b[^>]*?\sxml:lang=["']([^"']+)["']""")


def read_other(text: str, name: str, kind: str, fps: float | None) -> RawCue:
    """Read a file with pysubs2. kind: pysubs2's name of the format. fps: of the video, for formats with frame numbers.

    Call `parse_xml` on ttml first: it refuses unsafe XML. Raises RowFault (bad_subtitles).
    """
    if kind == "ttml" and "itunes:timing=" in text:
        text = APPLE_DIV.sub(r"\1", text)
    if kind == "microdvd" and (fps_line := FPS_LINE.match(text)):
        text, fps = text[fps_line.end() :], float(fps_line[1])
    pysubs2 = need_pysubs2()
    try:
        with warnings.catch_warnings():  # about unusual styles, which are not used here
            warnings.simplefilter("ignore")
            file = pysubs2.SSAFile.from_string(text, format_=kind, fps=fps)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # the parser may raise anything for malformed files
        message = f"{type(error).__name__}: {error}"[:200]
        raise RowFault("bad_subtitles", f"{name} cannot be read as {kind}: {message}") from error
    language = LANGUAGE.search(text) if kind == "ttml" else None
    found = RawCue(lang=language[1] if language else None)
    events = list(file)
    for event, after in zip(events, [*events[1:], None], strict=True):
        # sami has no end times: a text lasts until the next one, which may be empty; pysubs2 guesses from text length
        end = after.start if kind == "sami" and after else event.end
        if not (event.is_comment or event.is_drawing):
            found.add(event.start / 1000, end / 1000, plain(event.plaintext))
    return found


def need_pysubs2() -> Any:
    """Returns the module `pysubs2`. Raises VlpipeError with the pip command if it is not installed."""
    try:
        import pysubs2
    except ImportError as error:
        raise VlpipeError("subtitles of this format need pysubs2: pip install 'vlpipe[video]'") from error
    return pysubs2
