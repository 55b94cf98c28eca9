"""Columns of windows of a video, cut for its clips, so that they are not computed again: features, measures of frames.

A clip that overlaps others repeats their windows, so the clips of a batch may take more memory than their videos; they come
in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import RowFault, SchemaError
from vlpipe.pipeline.shard import Out, Reject, heavy, joined, need, with_field
from vlpipe.stages.common.texts import as_array
from vlpipe.stages.features.windows import WEIGHTS_OF, need_windows
from vlpipe.stages.video.frame_looks import LOOKS

LOOKED = "frame_looks"
COLUMNS = (*WEIGHTS_OF, LOOKED)
PART_BYTES = 1 << 25  # windows of the clips of a part, unless a single clip has more
SAME_S = 1e-7  # a frame that is this much before a clip's start or end counts as at it

Numbers = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]


def windows_problems(columns: Iterable[str]) -> list[str]:
    """Returns an error text for each name that is not a column of windows."""
    strange = [name for name in columns if name not in COLUMNS]
    return [f"windows: wanted some of {', '.join(COLUMNS)}; got {strange}"] if strange else []


def schema_with_windows(clips: pa.Schema, videos: pa.Schema, columns: Iterable[str], who: str) -> pa.Schema:
    """Returns `clips` with these columns of the videos, and those of their weights.

    Raises SchemaError if one is missing.
    """
    for name in columns:
        if name in WEIGHTS_OF:
            need_windows(videos, who, name)
            need(videos, who, **{WEIGHTS_OF[name]: pa.string()})
        elif name not in videos.names:
            why = f"{who} reads column {name!r}, which no earlier step writes; set `looks:` of a step with features.frames"
            raise SchemaError(f"{why} before it")
        else:
            need(videos, who, **{name: LOOKS})
        found = videos.field(name)
        metadata = {**(found.metadata or {}), **heavy(name, found.type).metadata}
        clips = with_field(clips, found.with_metadata(metadata))
        if name in WEIGHTS_OF:
            clips = with_field(clips, pa.field(WEIGHTS_OF[name], pa.string()))
    return clips


@dataclass
class Found:
    """Clips of a batch of videos, by name of their columns but without windows; rejects of videos; counts."""

    clips: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CutClips:
    """The function of a stage that turns videos into clips, a `PartsWork`.

    Clips that get no window are left out and counted (clips:no_window); a video of which no clip is left is rejected
    (filtered: no_window). find: the clips of a batch of videos. schema: of a clip without `columns`, which are the windows
    to cut.
    """

    find: Callable[[pa.Table], Found]
    schema: pa.Schema
    columns: Sequence[str]

    def __call__(self, videos: pa.Table) -> Out:
        return joined([*self.parts(videos)])

    def parts(self, videos: pa.Table) -> Iterator[Out]:
        """Yields the clips in parts of about PART_BYTES; all that may be wrong with the videos is found before the first."""
        found = self.find(videos)
        clips = found.clips
        rows = {id_: row for row, id_ in enumerate(videos["id"].to_pylist())}
        of = np.array([rows[clip["parent"]] for clip in clips], np.int64)
        lists = {name: as_array(videos[name]) for name in self.columns}
        cuts = {name: _cut(name, column, of, clips) for name, column in lists.items()}
        has_all = np.ones(len(clips), bool)
        num_bytes = np.zeros(len(clips), np.int64)
        for name, (first, stop) in cuts.items():
            has_all &= first < stop
            num_bytes += (stop - first) * _entry_bytes(lists[name])
        chosen = np.flatnonzero(has_all)
        lost = {clip["parent"]: None for clip in clips}
        for at in chosen:
            lost.pop(clips[int(at)]["parent"], None)
        why = f"no window of {', '.join(self.columns)} overlaps any of its clips"
        rejects = [*found.rejects, *(Reject(id_, "filtered", "no_window", why) for id_ in lost)]
        counts = dict(found.counts)
        if len(clips) > len(chosen):
            counts["clips:no_window"] = len(clips) - len(chosen)
        for some in _in_parts(chosen, num_bytes):
            table = pa.Table.from_pylist([clips[int(at)] for at in some], self.schema)
            for name, (first, stop) in cuts.items():
                table = table.append_column(name, _taken(lists[name], first[some], stop[some]))
                if name in WEIGHTS_OF:
                    weights = videos[WEIGHTS_OF[name]].take(pa.array(of[some]))
                    table = table.append_column(WEIGHTS_OF[name], weights)
            yield Out(table, rejects, counts=counts)
            rejects, counts = [], {}


def _in_parts(chosen: Numbers, num_bytes: Numbers) -> Iterator[Numbers]:
    """Yields consecutive parts of `chosen`, at least one, each of at most PART_BYTES or of one clip."""
    start = 0
    ends = np.cumsum(num_bytes[chosen])
    while start < len(chosen):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PART_BYTES, side="right")))
        yield chosen[start:stop]
        start = stop
    if not len(chosen):
        yield chosen


def _taken(lists: pa.ListArray, first: Numbers, stop: Numbers) -> pa.Array:
    """Returns a list for each clip: the entries `first` to `stop` of all entries of `lists`."""
    lengths = stop - first
    ends = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.arange(ends[-1]) + np.repeat(first - ends[:-1], lengths)
    entries = lists.flatten().take(pa.array(numbers, pa.int64()))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), entries).cast(lists.type)


def _entry_bytes(lists: pa.ListArray) -> int:
    """Returns the mean bytes of an entry, rounded up."""
    entries = lists.flatten()
    return -(-entries.nbytes // max(1, len(entries)))


def _cut(
    name: str, lists: pa.ListArray, of: Numbers, clips: Sequence[Mapping[str, Any]]
) -> tuple[Numbers, Numbers]:
    """Returns (first, stop) of each clip: the numbers of its windows among all entries of `lists`; none: equal numbers.

    Windows of features: those with their centre in the clip, else the nearest one if it overlaps the clip. Measures of
    frames: the frames that begin in the clip, else the one that is shown during it. Raises RowFault (windows_unordered)
    unless the windows of a video are in the order of time.
    """
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entries = lists.flatten()
    starts, ends = (
        pc.struct_field(entries, n).to_numpy(zero_copy_only=False).astype(np.float64)
        for n in ("start_s", "end_s")
    )
    places = starts + SAME_S if name == LOOKED else (starts + ends) / 2
    inner = np.ones(len(places), bool)
    inner[offsets[:-1][lengths > 0]] = False
    if (inner[1:] & (np.diff(places) < 0)).any():
        raise RowFault(
            "windows_unordered", f"the windows in column {name!r} of a video are not in the order of time"
        )
    found = [
        _range(places[part], starts[part], ends[part], clip, nearest=name != LOOKED)
        for part, clip in (
            (slice(offsets[row], offsets[row + 1]), clip) for row, clip in zip(of, clips, strict=True)
        )
    ]
    first, stop = np.array(found, np.int64).reshape(-1, 2).T
    return first + offsets[of], stop + offsets[of]


def _range(
    places: Times, starts: Times, ends: Times, clip: Mapping[str, Any], *, nearest: bool
) -> tuple[int, int]:
    """Returns (first, stop) of the windows whose place is in the clip; else of one that overlaps it; else (0, 0).

    places: by time. nearest: the one is that whose place is nearest to the clip's middle (ties: the first), else the last
    one before the clip.
    """
    first, stop = (int(np.searchsorted(places, clip[name])) for name in ("start_s", "end_s"))
    if first == stop:
        near = np.arange(max(0, first - 1), min(first + 1 if nearest else first, len(places)))
        if not len(near):
            return 0, 0
        middle = (clip["start_s"] + clip["end_s"]) / 2
        at = int(near[np.abs(places[near] - middle).argmin()])
        first = int(np.searchsorted(places, places[at]))
        stop = first + 1
        if not (starts[first] < clip["end_s"] and ends[first] > clip["start_s"]):
            return 0, 0
    return first, stop
