"""Processes the clips of a video together, so that it is opened once; a clip's result does not depend on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Reject

T = TypeVar("T")
Clip = Mapping[str, Any]
CLIP_TIME = {"start_s": pa.float64(), "end_s": pa.float64()}
CLIP_FILE = {"id": pa.string(), "video": pa.string(), "num_bytes": pa.int64()}  # columns that decoding needs
CLIP_PLACE = CLIP_FILE | CLIP_TIME


def grid(start_s: float, end_s: float, fps: float) -> range:
    """Returns the frame numbers k whose time k / fps is in [start_s, end_s).

    If there are none, the range has one number: the last k before the interval, at least 0. At 1 fps, 2.3 to 2.6 s gives 2.
    """
    first, stop = (math.ceil(round(time_s * fps, 6)) for time_s in (start_s, end_s))
    return range(first, stop) if first < stop else range(max(0, stop - 1), max(1, stop))


def over_videos(
    clips: Sequence[Clip], measure: Callable[[Sequence[Clip]], Sequence[T]], rejects: list[Reject]
) -> list[T | None]:
    """Returns one result per clip, None for a rejected clip. measure: maps the clips of one video to one result per clip.

    If `measure` raises RowFault for a video, it is called again for each clip alone, so that a damaged part of the file
    rejects only the clips that contain it. A Reject per rejected clip is appended to `rejects`.
    """
    places: dict[tuple[str, int], list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault((clip["video"], clip["num_bytes"]), []).append(place)
    found: list[T | None] = [None] * len(clips)
    for some in places.values():
        try:
            results: Sequence[T | None] = measure([clips[place] for place in some])
        except RowFault as fault:
            if len(some) == 1:
                rejects.append(Reject(clips[some[0]]["id"], "fault", fault.why, fault.detail))
                continue
            results = [_alone(clips[place], measure, rejects) for place in some]
        for place, result in zip(some, results, strict=True):
            found[place] = result
    return found


def _alone(clip: Clip, measure: Callable[[Sequence[Clip]], Sequence[T]], rejects: list[Reject]) -> T | None:
    try:
        return measure([clip])[0]
    except RowFault as fault:
        rejects.append(Reject(clip["id"], "fault", fault.why, fault.detail))
        return None
