"""Source stage for a folder of videos, with subtitles in files beside them or in text tracks; returns a row per video.

A subtitle file belongs to the video whose name it starts with: `a/b.srt`, `a/b.en.vtt`, `a/b.en-orig.json3` to `a/b.mp4`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import Listing
from vlpipe.stages.common.row import ListIds
from vlpipe.stages.lists.list import BATCH_ROWS
from vlpipe.stages.subtitles.read import MAX_BYTES, OTHERWISE, read_subtitles
from vlpipe.stages.subtitles.track import Track
from vlpipe.stages.video_files.probe import Look, Prober
from vlpipe.stages.video_files.text_tracks import embedded, rank
from vlpipe.stages.video_files.video_rows import ENDINGS, Row, VideoSource, opened

# Richest format first: of two files in one language, the one with word times is read.
SUBTITLES = (
    *(".json3", ".srv3", ".ytt", ".vtt", ".json", ".srt", ".sbv", ".ttml"),
    *(".ass", ".ssa", ".srv2", ".srv1", ".sami", ".smi", ".sub", ".mpl"),
)
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")  # BCP 47, simplified
FOUND = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("num_bytes", pa.int64()),  # so that a file whose size changes is processed again
        ("subtitles", pa.string()),  # path of the subtitle file that is read; null: none
        ("subtitle_bytes", pa.int64()),
        ("lang", pa.string()),  # from the name of the subtitle file
        ("why", pa.string()),  # if set, the row is rejected with this code
    ]
)


@dataclass(frozen=True, kw_only=True)
class Videos(VideoSource):
    """Returns one video row per video file in a folder.

    videos: a folder, an fsspec URL, or a step's artifact; a file with one of `endings` is a video.
    languages: accepted languages, best first ("en" also matches en-US); files of another language are ignored. If empty,
    all are accepted. If a video has several files in the best language, the first by `subtitle_endings`, then name, is read.
    embedded: read a text track of the video if it has no subtitle file. encoding: of subtitle files that are not UTF-8.
    Additional reject codes: no_video_file (subtitles without a video).
    """

    videos: Listing
    languages: tuple[str, ...] = ()
    embedded: bool = True
    encoding: str = OTHERWISE
    endings: tuple[str, ...] = ENDINGS
    subtitle_endings: tuple[str, ...] = SUBTITLES

    NAME: ClassVar[str] = "ingest.videos:Videos"
    VERSION: ClassVar[int] = 2

    def row_schema(self) -> pa.Schema:
        return FOUND

    def rows(self) -> Iterator[pa.Table]:
        ids = ListIds(self.source)
        files = dict(self.videos.files())
        found = listed(files, self.endings, self.languages, self.subtitle_endings)
        while batch := list(islice(found, BATCH_ROWS)):
            columns: dict[str, list[Any]] = {
                name: [getattr(one, name) for one in batch] for name in VideoFile._fields
            }
            yield pa.table({"id": ids.of(columns["url"], [""] * len(batch)), **columns}, schema=FOUND)

    def video(self, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        if one["why"]:
            raise RowFault(one["why"], f"there is no video for the subtitle file {one['url']}")
        in_file = self.embedded and one["subtitles"] is None

        def read(seen: Look) -> Track:
            if one["subtitles"] is not None:
                return self._sidecar(one, seen)
            return self.track_of(embedded(seen.texts, self.languages, one["url"]), one["url"])

        about = self.about(self.videos.path, one["url"], read, probe, counts, text_tracks=in_file)
        return {**about, "video_id": PurePosixPath(one["url"]).stem}

    def _sidecar(self, one: Row, seen: Look) -> Track:
        with opened(self.videos.path, one["subtitles"]) as file:
            data = file.read(MAX_BYTES + 1)
        return read_subtitles(
            data,
            one["subtitles"],
            source=self.subtitle_source,
            lang=one["lang"] or self.lang,
            encoding=self.encoding,
            fps=seen.info.fps,
            rollup=self.rollup,
        )


class VideoFile(NamedTuple):
    """A video with its subtitle file if it has one, or a subtitle file without a video."""

    url: str
    num_bytes: int
    subtitles: str | None = None
    subtitle_bytes: int | None = None
    lang: str | None = None
    why: str | None = None


def listed(
    files: Mapping[str, int],
    endings: Sequence[str],
    languages: Sequence[str],
    subtitle_endings: Sequence[str] = SUBTITLES,
) -> Iterator[VideoFile]:
    """Yield the videos, and the subtitle files without a video, in order of path.

    files: path -> size in bytes; files other than videos and subtitles are ignored.
    """
    videos = {path for path in files if _ending(path) in endings}
    stems = {_stem(path) for path in videos}
    beside: dict[str, list[tuple[str, str | None]]] = {}
    alone: set[str] = set()
    for path in sorted(files.keys() - videos):
        if _ending(path) in subtitle_endings:
            stem, lang = _belongs_to(path, stems)
            if stem is None:
                alone.add(path)
            else:
                beside.setdefault(stem, []).append((path, lang))
    for path in sorted(videos | alone):
        found = _best(beside.get(_stem(path), []), languages, subtitle_endings)
        if path in alone:
            yield VideoFile(path, files[path], why="no_video_file")
        elif found is None:
            yield VideoFile(path, files[path])
        else:
            yield VideoFile(path, files[path], found[0], files[found[0]], found[1])


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _belongs_to(path: str, stems: set[str]) -> tuple[str | None, str | None]:
    """Returns (path of the subtitle file's video without its ending, language), or (None, None) if it has no video."""
    stem = _stem(path)
    if stem in stems:
        return stem, None
    shorter, lang = _stem(stem), PurePosixPath(stem).suffix[1:]
    return (shorter, lang) if shorter in stems and LANGUAGE.fullmatch(lang) else (None, None)


def _best(
    files: Sequence[tuple[str, str | None]], languages: Sequence[str], endings: Sequence[str]
) -> tuple[str, str | None] | None:
    """Returns (path, language) of the file to read, chosen by language, ending, name; None if no language matches."""
    wanted = [
        (place, endings.index(_ending(path)), path, lang)
        for path, lang in files
        if (place := rank(lang, languages)) is not None
    ]
    return min(wanted)[2:] if wanted else None
