"""Source stage for a folder of videos, with subtitles in files beside them or in text tracks; returns a row per video."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import Listing
from vlpipe.stages.common.row import ListIds
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.subtitles.read import MAX_BYTES, OTHERWISE, NotSubtitles
from vlpipe.stages.subtitles.track import Track
from vlpipe.stages.video.shut_in import Look
from vlpipe.stages.video_files.probe import Prober
from vlpipe.stages.video_files.sidecars import GENERIC, SUBTITLES, VideoFile, listed
from vlpipe.stages.video_files.text_tracks import embedded
from vlpipe.stages.video_files.video_rows import ENDINGS, Row, VideoSource, opened

SIDECAR = pa.struct([("path", pa.string()), ("num_bytes", pa.int64()), ("lang", pa.string())])
FOUND = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("num_bytes", pa.int64()),  # so that a file whose size changes is processed again
        ("sidecars", pa.list_(SIDECAR)),  # subtitle files beside it, best first
        ("why", pa.string()),  # if set, the row is rejected with this code
    ]
)


@dataclass(frozen=True, kw_only=True)
class Videos(VideoSource):
    """Returns one video row per video file in a folder.

    videos: a folder, an fsspec URL, or a step's artifact; a file with one of `endings` is a video.
    languages: accepted languages, best first ("en" also matches en-US); files of another language are ignored, and those
    without one in their name come last. If empty, all are accepted. The subtitle files of a video (`sidecars`) are tried in
    order of language, `subtitle_endings`, name, and the first with cues is used. JSON, XML and tsv files with other content
    are passed over.
    embedded: if no subtitle file has cues, use the best language among the video's text tracks. encoding: of subtitle files
    that do not state theirs and are not UTF-8. Additional reject codes: no_video_file (subtitles without a video).
    Additional counts: sidecars_other_content, sidecars_unread (a file without cues, before another one was read).
    """

    videos: Listing
    languages: tuple[str, ...] = ()
    embedded: bool = True
    encoding: str = OTHERWISE
    endings: tuple[str, ...] = ENDINGS
    subtitle_endings: tuple[str, ...] = SUBTITLES

    NAME: ClassVar[str] = "ingest.videos:Videos"
    VERSION: ClassVar[int] = 2

    def preflight(self) -> list[str]:
        try:
            "".encode(codecs.lookup(self.encoding).name)
        except LookupError:
            return [
                f"encoding: there is no encoding {self.encoding!r}; use one such as utf-8, latin-1 or shift_jis",
                *super().preflight(),
            ]
        return super().preflight()

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
            columns["sidecars"] = [[sidecar._asdict() for sidecar in some] for some in columns["sidecars"]]
            yield pa.table({"id": ids.of(columns["url"], [""] * len(batch)), **columns}, schema=FOUND)

    def video(self, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        if one["why"]:
            raise RowFault(one["why"], f"there is no video for the subtitle file {one['url']}")
        in_file = self.embedded and not one["sidecars"]

        def read(seen: Look) -> Track:
            return self._track(one, seen, probe, counts)

        about = self.about(self.videos.path, one["url"], read, probe, counts, text_tracks=in_file)
        return {**about, "video_id": PurePosixPath(one["url"]).stem}

    def _track(self, one: Row, seen: Look, probe: Prober, counts: Counter[str]) -> Track:
        """Returns the cues of the first sidecar that has some, else of the text tracks.

        If these have none either, raises the RowFault of the first sidecar tried, not counting JSON, XML and tsv files with
        other content; if there is none, that of the text tracks (no_cues, bad_subtitles).
        """
        fault: RowFault | None = None
        for sidecar in one["sidecars"]:
            try:
                found = self._sidecar(sidecar, seen, probe)
            except NotSubtitles as error:
                if PurePosixPath(sidecar["path"]).suffix.lower() in GENERIC:
                    counts["sidecars_other_content"] += 1
                else:
                    fault = fault or error
                    counts["sidecars_unread"] += 1
            except RowFault as error:
                fault = fault or error
                counts["sidecars_unread"] += 1
            else:
                return found
        if self.embedded and one["sidecars"]:  # they were not read yet
            seen = probe.look(self.videos.path, one["url"], text_tracks=True, num_bytes=one["num_bytes"])
        try:
            return self.track_of(embedded(seen.text_cues(), self.languages, one["url"]), one["url"])
        except RowFault as error:
            raise fault or error from error

    def _sidecar(self, sidecar: Mapping[str, Any], seen: Look, probe: Prober) -> Track:
        with opened(self.videos.path, sidecar["path"]) as file:
            data = file.read(MAX_BYTES + 1)
        return probe.subtitles(
            data,
            sidecar["path"],
            source=self.subtitle_source,
            lang=sidecar["lang"] or self.lang,
            encoding=self.encoding,
            fps=seen.info.fps,
            rollup=self.rollup,
        )
