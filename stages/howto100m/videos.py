"""Source stage for HowTo100M: joins its list of videos with its captions; returns one row per video whose file exists.

The captions are one JSON object of many gigabytes. It is streamed once, when the input rows are listed; each of these
contains its captions, so workers do not read the JSON. Rows are in order of the captions. Captions of unlisted videos,
and listed videos without captions, are rejected.
https://www.di.ens.fr/willow/research/howto100m/
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.common.row import RowIds
from vlpipe.stages.howto100m.captions import Captions, read_captions
from vlpipe.stages.howto100m.lists import ListedVideo, read_list, read_tasks
from vlpipe.stages.subtitles.track import Track
from vlpipe.stages.video.rows import VIDEOS
from vlpipe.stages.video_files.download import Download, fetch_with
from vlpipe.stages.video_files.probe import Prober
from vlpipe.stages.video_files.video_rows import CUE_FAULTS, Row, VideoSource, exists

BATCH_ROWS = 256  # rows of about 10 KB each, including captions
# Reject codes of rows that may have the same video id.
REPEATED = frozenset({"bad_line", "duplicate_captions", "duplicate_video"})
MAX_ID_CHARS = 64  # YouTube's ids have 11
TASK = (
    pa.field("category_1", pa.string()),
    pa.field("category_2", pa.string()),
    pa.field("rank", pa.int32()),  # of the video in YouTube's search results for the task, 1 to 200
    pa.field("task_id", pa.string()),
)
LIST = pa.schema(
    [("video_id", pa.string()), ("path", pa.string()), *TASK, ("why", pa.string()), ("detail", pa.string())]
)
CAPTIONS = (
    pa.field("texts", pa.list_(pa.string())),
    pa.field("starts_s", pa.list_(pa.float64())),
    pa.field("ends_s", pa.list_(pa.float64())),
)
FOUND = pa.schema([("id", pa.string()), ("url", pa.string()), *LIST, ("task", pa.string()), *CAPTIONS])
HOWTO100M = pa.schema([*VIDEOS, *TASK, ("task", pa.string())])


@dataclass(frozen=True, kw_only=True)
class HowTo100M(VideoSource):
    """Returns the video rows of HowTo100M (schema HOWTO100M).

    videos: folder or fsspec URL with the files, <id> + one of `endings` or the paths in the list.
    list: HowTo100M_v1.csv, or MIL-NCE's howto100m_videos.csv (`video_path`). captions: caption.json, raw_caption.json, a
    folder of <id>.csv, or a zip of one of these. tasks: task_ids.csv, for the column `task`. download: a command that
    downloads a missing video (`video_files.download`); off by default.
    Additional reject codes: no_captions, bad_captions, not_listed (captions of a video that is not in the list),
    duplicate_video (its id is in an earlier line), duplicate_captions (it has captions in an earlier entry), bad_line (a
    broken line of the list, or one without an id), and those of `video_files.download`.
    """

    NAME: ClassVar[str] = "ingest.howto100m:HowTo100M"
    VERSION: ClassVar[int] = 2
    OBSERVES_WORLD: ClassVar[bool] = True  # because of `download`
    # These do not affect the rows, which store the size and sha256 of each file.
    NOT_IN_KEY: ClassVar[frozenset[str]] = VideoSource.NOT_IN_KEY | {"videos", "download"}

    videos: str
    list: ListFile
    captions: ListFile
    tasks: ListFile | None = None
    endings: tuple[str, ...] = (".mp4", ".webm", ".mkv")
    source: str = "howto100m"
    lang: str | None = "en"  # all subtitles are English: written, recognised, or translated
    download: Download | None = None

    def preflight(self) -> builtins.list[str]:
        if self.list.step is None:
            next(read_list(Path(self.list.path)), None)  # raises if its columns are wrong
        if self.tasks and self.tasks.step is None:
            read_tasks(Path(self.tasks.path))
        return super().preflight()

    def row_schema(self) -> pa.Schema:
        return FOUND

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return HOWTO100M

    def rows(self) -> Iterator[pa.Table]:
        again, tasks = RowIds(self.source), read_tasks(Path(self.tasks.path)) if self.tasks else {}
        for table in joined(Path(self.list.path), Path(self.captions.path)):
            urls = [
                f"https://www.youtube.com/watch?v={video_id}" for video_id in table["video_id"].to_pylist()
            ]
            more = {
                "id": [self._id(again, *one) for one in zip(urls, table["why"].to_pylist(), strict=True)],
                "url": urls,
                "task": pa.array([tasks.get(t or "") for t in table["task_id"].to_pylist()], pa.string()),
            }
            for name, values in more.items():
                table = table.append_column(name, pa.array(values, pa.string()))
            yield table.select(FOUND.names).cast(FOUND)

    def _id(self, again: RowIds, url: str, why: str | None) -> str:
        """Returns the row id, unique also among rows with the same URL. why: reject code of the row, if any.

        `again` counts rows by URL; as it takes 300 bytes per row, it is given only those whose URL may repeat.
        """
        if why in REPEATED:
            return again.next(url, why)
        return (again if why == "not_listed" else RowIds(self.source)).next(url, "")

    def video(self, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        fault = RowFault(one["why"], one["detail"] or "") if one["why"] else None
        if fault and (fault.why not in CUE_FAULTS or self.no_cues == "reject"):
            raise fault
        name = self._file(one)

        def read(_: object) -> Track:
            if fault:
                raise fault
            return self.track_of(
                Captions(one["texts"], one["starts_s"], one["ends_s"]).found(), one["video_id"]
            )

        about = self.about(self.videos, name, read, probe, counts)
        return {
            **about,
            "video_id": one["video_id"],
            "task": one["task"],
            **{f.name: one[f.name] for f in TASK},
        }

    def _file(self, one: Row) -> str:
        """Returns the path of the video file below `videos`. Raises RowFault: no_file, bad_path, those of `fetch_with`."""
        names = [one["path"]] if one["path"] else [one["video_id"] + ending for ending in self.endings]
        for name in names:
            if exists(self.videos, name):
                return name
        if self.download:
            return fetch_with(self.download, one["video_id"], self.videos, self.endings)
        raise RowFault("no_file", f"there is no file {' or '.join(names)} in the folder given by `videos`")


def joined(list_: Path, captions: Path) -> Iterator[pa.Table]:
    """Yields the outer join of list and captions (columns of LIST and CAPTIONS).

    It has one row per entry of the captions, then one row per line of the list that matched no entry.
    """
    videos = VideoList(list_)
    rest = read_captions(captions)
    while batch := list(islice(rest, BATCH_ROWS)):
        yield videos.with_captions(batch)
    yield from videos.without_captions()


class VideoList:
    """The list of videos in memory (60 bytes per line), with lookup by video id. VlpipeError if it is empty."""

    def __init__(self, path: Path) -> None:
        rest, tables = read_list(path), []
        while batch := list(islice(rest, 16 * BATCH_ROWS)):
            tables.append(_table([_checked(one) for one in batch]))
        if not tables:
            raise VlpipeError(f"{path} lists no video")
        self.table = pa.concat_tables(tables).combine_chunks()
        names = np.array([(v or "").encode() for v in self.table["video_id"].to_pylist()])
        self._order = np.argsort(names, kind="stable")  # among equal ids the first line comes first
        self._sorted = names[self._order]
        self._seen = np.zeros(len(names), bool)

    def with_captions(self, batch: Sequence[tuple[str, Captions | RowFault]]) -> pa.Table:
        """Returns one row per entry: its line of the list, with its captions, or `why` and `detail` if it is rejected."""
        lines = self._find([video_id for video_id, _ in batch])
        table = self.table.take(pa.array(lines, pa.int64(), mask=lines < 0))
        bad = zip(table["why"].to_pylist(), table["detail"].to_pylist(), strict=True)
        whys = [
            self._why(*entry, line, RowFault(*why) if why[0] else None)
            for entry, line, why in zip(batch, lines, bad, strict=True)
        ]
        captions = [found if isinstance(found, Captions) else Captions([], [], []) for _, found in batch]
        table = _with(table, "video_id", [video_id for video_id, _ in batch])
        table = _with(table, "why", [fault.why if fault else None for fault in whys])
        table = _with(table, "detail", [fault.detail if fault else None for fault in whys])
        return _with_captions(table, captions)

    def _why(
        self, video_id: str, found: Captions | RowFault, line: int, bad_line: RowFault | None
    ) -> RowFault | None:
        """Returns why this entry is rejected, or None. Marks the line as matched."""
        if line < 0:
            return RowFault("not_listed", f"{video_id} has captions, but is not in the list of videos")
        seen, self._seen[line] = self._seen[line], True
        if seen:
            return RowFault(
                "duplicate_captions", f"an earlier entry of the caption file also has captions of {video_id}"
            )
        return bad_line or (found if isinstance(found, RowFault) else None)

    def without_captions(self) -> Iterator[pa.Table]:
        """Yields the unmatched lines in order of the list, each with a reject code in `why`.

        Codes: bad_line, duplicate_video (an earlier line has the same id), no_captions.
        """
        again = np.zeros(len(self._order), bool)
        again[self._order[1:]] = self._sorted[1:] == self._sorted[:-1]
        left = np.flatnonzero(~self._seen)
        for start in range(0, len(left), BATCH_ROWS):
            lines = left[start : start + BATCH_ROWS]
            table = self.table.take(pa.array(lines))
            whys = [
                why or ("duplicate_video" if again[line] else "no_captions")
                for line, why in zip(lines, table["why"].to_pylist(), strict=True)
            ]
            yield _with_captions(_with(table, "why", whys), [Captions([], [], [])] * len(lines))

    def _find(self, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns, for each id, the index of the first line with it, or -1 if there is none."""
        names = np.array([one.encode() for one in ids])
        places = np.minimum(np.searchsorted(self._sorted, names), len(self._sorted) - 1)
        return np.where(self._sorted[places] == names, self._order[places], -1)


def _with(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))


def _with_captions(table: pa.Table, captions: Sequence[Captions]) -> pa.Table:
    for place, field in enumerate(CAPTIONS):
        table = table.append_column(field, pa.array([one[place] for one in captions], field.type))
    return table


def _checked(one: ListedVideo) -> ListedVideo:
    if len(one.video_id) > MAX_ID_CHARS and not one.why:
        detail = f"the video id has {len(one.video_id)} characters, the limit is {MAX_ID_CHARS}"
        one = one._replace(why="bad_line", detail=detail)
    return one._replace(video_id=one.video_id[:MAX_ID_CHARS])


def _table(batch: Sequence[ListedVideo]) -> pa.Table:
    return pa.table({name: [getattr(one, name) for one in batch] for name in LIST.names}, schema=LIST)
