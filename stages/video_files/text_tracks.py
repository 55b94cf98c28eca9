"""Selects the cues of the best language from the text tracks inside a video file."""

from __future__ import annotations

from collections.abc import Sequence

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.cue import RawCue
from vlpipe.stages.subtitles.text import plain
from vlpipe.stages.video.decode import TextCue


def rank(lang: str | None, languages: Sequence[str]) -> int | None:
    """Returns the index of `lang` in `languages` ("en" also matches en-US), or None if it is not among them.

    len(languages), the last rank, if `lang` is None (unknown) or `languages` is empty (all are accepted).
    """
    if lang is None or not languages:
        return len(languages)
    tag = lang.lower().replace("_", "-")
    return next((n for n, one in enumerate(languages) if f"{tag}-".startswith(f"{one.lower()}-")), None)


def embedded(texts: Sequence[TextCue], languages: Sequence[str], video: str) -> RawCue:
    """Returns the cues of the language that `rank` puts first. Raises RowFault (no_cues) if there is none.

    texts: the cues of all text tracks of the file. video: its path, for error texts.
    """
    ranks = {lang: rank(lang, languages) for lang in map(_lang, texts)}
    wanted = {lang: place for lang, place in ranks.items() if place is not None}
    if not wanted:
        have = ", ".join(sorted(str(lang) for lang in ranks))
        raise RowFault(
            "no_cues",
            f"{video} has no subtitle track" + (f" in a wanted language; it has {have}" if have else ""),
        )
    best = min(wanted, key=lambda lang: wanted[lang])  # among equal ranks the first in the file
    found = RawCue(lang=best)
    for cue in texts:
        if _lang(cue) == best:
            found.add(cue.start_s, cue.end_s, plain(cue.text.replace("\\N", "\n").replace("\\n", "\n")))
    return found


def _lang(cue: TextCue) -> str | None:
    return None if cue.lang in (None, "", "und") else cue.lang
