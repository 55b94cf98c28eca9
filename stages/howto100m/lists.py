"""Reads HowTo100M's lists of videos (HowTo100M_v1.csv, MIL-NCE's howto100m_videos.csv) and of tasks (task_ids.csv)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.readers import READERS

MORE = ("category_1", "category_2", "rank", "task_id")  # columns of the released list besides the id


class ListedVideo(NamedTuple):
    """One line of the list of videos.

    path: of the video file, below `HowTo100M.videos`; None if the list has no paths. why, detail: reject code (bad_line) and
    its explanation; None if the line is valid.
    """

    video_id: str
    path: str | None = None
    category_1: str | None = None
    category_2: str | None = None
    rank: int | None = None  # of the video in YouTube's search results for the task, 1 to 200
    task_id: str | None = None
    why: str | None = None
    detail: str | None = None


def read_list(path: Path) -> Iterator[ListedVideo]:
    """Yields the lines in order. The id is the column `video_id`, or the file name in `video_path` up to the first dot.

    Lines that are broken, or have no id or no number as rank, are yielded with `why` set. Raises VlpipeError if the list has
    neither column.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        names = next(csv.reader(handle), [])
    known = [name for name in ("video_id", "video_path", "path", *MORE) if name in names]
    if "video_id" not in names and "video_path" not in names:
        raise VlpipeError(
            f"{path} must have a column 'video_id' or 'video_path'; its columns are {', '.join(names)[:200]}"
        )
    for where, row in READERS[".csv"](path, {name: name for name in known}, None, "utf-8"):
        if isinstance(row, BadLine):
            yield ListedVideo(row.line[:80], why="bad_line", detail=str(row).removeprefix(f"{path.parent}/"))
            continue
        file = row.get("video_path") or row.get("path") or None
        video_id = row.get("video_id") or (PurePosixPath(file).name.split(".")[0] if file else "")
        rank = row.get("rank") or None
        one = ListedVideo(
            video_id, file, row.get("category_1"), row.get("category_2"), None, row.get("task_id")
        )
        line = where.removeprefix(f"{path.parent}/")
        if not video_id:
            yield one._replace(why="bad_line", detail=f"{line} has no video id")
        elif rank is not None and not (rank.isascii() and rank.isdecimal() and len(rank) < 9):
            yield one._replace(why="bad_line", detail=f"{line}: wanted a number as rank, got {rank[:40]!r}")
        else:
            yield one._replace(rank=None if rank is None else int(rank))


def read_tasks(path: Path) -> dict[str, str]:
    """Returns {task id: its title on WikiHow}.

    A line is an id, a tab or comma (the same in all lines), and a title, which may contain commas. The first line may be a
    header. Raises VlpipeError if a line is invalid or the file is not UTF-8.
    """
    tasks: dict[str, str] = {}
    with path.open(encoding="utf-8-sig") as handle:
        try:
            lines = [(number, line.rstrip("\r\n")) for number, line in enumerate(handle, 1) if line.strip()]
        except UnicodeDecodeError as error:
            raise VlpipeError(f"{path} is not UTF-8: {error.reason}") from error
    delimiter = "\t" if lines and "\t" in lines[0][1] else ","
    for place, (number, line) in enumerate(lines):
        task_id, found, name = line.partition(delimiter)
        if place == 0 and not task_id.strip('" ').isdecimal():
            continue
        if not found:
            raise VlpipeError(
                f"{path} line {number}: wanted a task id, a tab or comma, and the task's title; got {line[:80]!r}"
            )
        name = name.strip()
        quoted = len(name) > 1 and name[0] == name[-1] == '"'
        tasks[task_id.strip('" ')] = name[1:-1].replace('""', '"') if quoted else name
    return tasks
