"""Feature windows of a video, cut for its clips, so that they are not computed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.stages.common.texts import as_array
from vlpipe.stages.features.windows import WEIGHTS_OF, centred_in, need_windows

Indices = npt.NDArray[np.int64]


def windows_problems(columns: Iterable[str]) -> list[str]:
    """Returns one line per name that is no column of windows."""
    strange = [name for name in columns if name not in WEIGHTS_OF]
    return [f"windows: wanted some of {', '.join(WEIGHTS_OF)}; got {strange}"] if strange else []


def schema_with_windows(clips: pa.Schema, videos: pa.Schema, columns: Iterable[str], who: str) -> pa.Schema:
    """Returns `clips` with these columns of the videos, and those of their weights.

    Raises SchemaError if one is missing.
    """
    for name in columns:
        need_windows(videos, who, name)
        need(videos, who, **{WEIGHTS_OF[name]: pa.string()})
        found = videos.field(name)
        metadata = {**(found.metadata or {}), **heavy(name, found.type).metadata}
        clips = with_field(clips, found.with_metadata(metadata))
        clips = with_field(clips, pa.field(WEIGHTS_OF[name], pa.string()))
    return clips


def table_with_windows(
    clips: Sequence[dict[str, Any]], schema: pa.Schema, videos: pa.Table, columns: Sequence[str]
) -> Out:
    """Returns the clips as a table with `columns` cut from their videos.

    Clips that get no window are left out and counted (clips:no_window); a video of which no clip is left is rejected
    (filtered: no_window). clips: values by name, without `columns`. schema: of the table without `columns`.
    """
    rows = {id_: row for row, id_ in enumerate(videos["id"].to_pylist())}
    of = np.array([rows[clip["parent"]] for clip in clips], np.int64)
    cuts = {name: _cut(as_array(videos[name]), of, clips) for name in columns}
    has_all = np.all([[len(one) > 0 for one in cut] for cut in cuts.values()], axis=0)
    chosen = np.flatnonzero(has_all) if cuts else np.arange(len(clips))
    table = pa.Table.from_pylist([clips[int(i)] for i in chosen], schema)
    for name, cut in cuts.items():
        lists = as_array(videos[name])
        kept = [cut[i] for i in chosen]
        ends = np.cumsum([0, *(len(one) for one in kept)])
        entries = lists.flatten().take(pa.array(np.concatenate([np.zeros(0, np.int64), *kept])))
        column = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), entries).cast(lists.type)
        weights = videos[WEIGHTS_OF[name]].take(pa.array(of[chosen]))
        table = table.append_column(name, column).append_column(WEIGHTS_OF[name], weights)
    lost = dict.fromkeys(clip["parent"] for clip in clips)
    for at in chosen:
        lost.pop(clips[int(at)]["parent"], None)
    why = f"no window of {', '.join(columns)} overlaps any of its clips"
    return Out(
        table,
        [Reject(id_, "filtered", "no_window", why) for id_ in lost],
        counts={"clips:no_window": len(clips) - len(chosen)} if len(clips) > len(chosen) else {},
    )


def _cut(lists: pa.Array, of: Indices, clips: Sequence[dict[str, Any]]) -> list[Indices]:
    """Returns, for each clip, the numbers of its windows among all entries of `lists`; none if no window overlaps it."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entries = lists.flatten()
    starts, ends = (
        pc.struct_field(entries, n).to_numpy(zero_copy_only=False).astype(np.float64)
        for n in ("start_s", "end_s")
    )
    found = []
    for row, clip in zip(of, clips, strict=True):
        part = slice(offsets[row], offsets[row + 1])
        inside = centred_in(starts[part], ends[part], clip["start_s"], clip["end_s"])
        overlap = (starts[part] < clip["end_s"]) & (ends[part] > clip["start_s"])
        found.append(offsets[row] + np.flatnonzero(inside & overlap))
    return found
