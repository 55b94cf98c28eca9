"""Finds the subtitle files beside videos, by name. What they contain is known only when they are read.

A subtitle file belongs to the video whose name it starts with: `a/b.srt`, `a/b.en.vtt`, `a/b.en-orig.json3`, `a/b.mp4.srt`
to `a/b.mp4`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from vlpipe.stages.video_files.text_tracks import rank

# Richest format first: of two files in one language, the one with word times is read.
SUBTITLES = (
    *(".json3", ".srv3", ".ytt", ".vtt", ".json", ".srt", ".sbv", ".ttml", ".dfxp", ".itt"),
    *(".ass", ".ssa", ".srv2", ".srv1", ".sami", ".smi", ".sub", ".mpl", ".tsv", ".xml"),
)
# Endings of many other files too: such a file without a video is ignored, and one that is no subtitle file is passed over.
GENERIC = frozenset({".json", ".tsv", ".xml"})
# What stands before the ending in the names of other files that are written beside videos (yt-dlp, players).
NOT_SUBTITLES = frozenset(
    {
        "info",
        "live_chat",
        "rechat",
        "comments",
        "annotations",
        "chapters",
        "metadata",
        "thumbnails",
        "storyboard",
    }
)
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")  # BCP 47, simplified


class Sidecar(NamedTuple):
    """A subtitle file beside a video. lang: as in its name, `en` of `a.en.srt`; None for `a.srt`."""

    path: str
    num_bytes: int
    lang: str | None


class VideoFile(NamedTuple):
    """A video with its subtitle files, best first; or a subtitle file without a video, and `why` is its reject code.

    url: the path of the file below the listed folder.
    """

    url: str
    num_bytes: int
    sidecars: tuple[Sidecar, ...] = ()
    why: str | None = None


def listed(
    files: Mapping[str, int],
    endings: Sequence[str],
    languages: Sequence[str],
    subtitle_endings: Sequence[str] = SUBTITLES,
) -> Iterator[VideoFile]:
    """Yields the videos, and the subtitle files without a video, in order of path.

    files: path -> size in bytes; files other than videos and subtitles are ignored. languages: as in `Videos`.
    """
    videos = {path for path in files if _ending(path) in endings}
    stems = {_stem(path) for path in videos} | videos
    beside: dict[str, list[Sidecar]] = {}
    alone: set[str] = set()
    for path in sorted(files.keys() - videos):
        if _ending(path) not in subtitle_endings or _tag(path) in NOT_SUBTITLES:
            continue
        stem, lang = _belongs_to(path, stems)
        if stem is not None:
            beside.setdefault(stem, []).append(Sidecar(path, files[path], lang))
        elif _ending(path) not in GENERIC:
            alone.add(path)
    for path in sorted(videos | alone):
        if path in alone:
            yield VideoFile(path, files[path], why="no_video_file")
        else:
            found = [*beside.get(_stem(path), ()), *beside.get(path, ())]
            yield VideoFile(path, files[path], _ranked(found, languages, subtitle_endings))


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _tag(path: str) -> str:
    """Returns what is between the last two dots of a name: `en` of `a.en.srt`; "" if there is none."""
    return PurePosixPath(_stem(path)).suffix[1:].lower()


def _belongs_to(path: str, stems: set[str]) -> tuple[str | None, str | None]:
    """Returns (the one of `stems` to which a subtitle file belongs, language or None); (None, None) if to none.

    `a/b.en.srt` gives ("a/b", "en"), `a/b.mp4.srt` gives ("a/b.mp4", None). stems: paths of the videos, each with and
    without its ending.
    """
    stem = _stem(path)
    if stem in stems:
        return stem, None
    shorter, lang = _stem(stem), PurePosixPath(stem).suffix[1:]
    return (shorter, lang) if shorter in stems and LANGUAGE.fullmatch(lang) else (None, None)


def _ranked(
    files: Sequence[Sidecar], languages: Sequence[str], endings: Sequence[str]
) -> tuple[Sidecar, ...]:
    """Returns the files to try, in this order: by language, ending, name. Files of an unwanted language are left out."""
    ranks = {one: rank(one.lang, languages) for one in files}
    wanted = [one for one in files if ranks[one] is not None]
    return tuple(sorted(wanted, key=lambda one: (ranks[one], endings.index(_ending(one.path)), one.path)))
