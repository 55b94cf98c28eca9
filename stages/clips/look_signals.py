"""Signals of clips from measures of their video's frames, which an earlier step made while it decoded them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.cut_windows import LOOKED
from vlpipe.stages.clips.frame_signals import BLUR_BELOW, CUT_ABOVE, SIGNALS, STATIC_BELOW, signals
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.video.frame_looks import LOOKS, looks_of


@dataclass(frozen=True, kw_only=True)
class LookSignals(MapStage):
    """Adds the columns of `clips.frame_signals:FrameSignals`, with the same values, from stored measures of frames.

    One difference: if no sampled frame of a clip begins before its video ends, this stage takes the measures of the video's
    last frame, and `FrameSignals` rejects the clip. Reads the heavy column `frame_looks`: `features.frames:FrameFeatures`
    with `looks:` writes it for videos, and the step that makes the clips cuts it with `windows: [frame_looks]`. Thresholds:
    as in `FrameSignals`. Reject code: no_frames_in_window.
    """

    NAME: ClassVar[str] = "clips.look_signals:LookSignals"
    READS_HEAVY: ClassVar[tuple[str, ...]] = (LOOKED,)

    static_below: float = STATIC_BELOW
    cut_above: float = CUT_ABOVE
    blur_below: float = BLUR_BELOW

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "clips.look_signals", id=pa.string(), **{LOOKED: LOOKS})
        for field in SIGNALS:
            inp = with_field(inp, field)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._work

    def _work(self, rows: pa.Table) -> Out:
        rejects: list[Reject] = []
        found: list[dict[str, Any]] = []
        for id_, entries in zip(rows["id"].to_pylist(), rows[LOOKED].to_pylist(), strict=True):
            if entries:
                looks = looks_of(entries)
                found.append(signals(looks, self.static_below, self.cut_above, self.blur_below))
            else:
                detail = "no frame was measured during the clip"
                rejects.append(Reject(id_, "fault", "no_frames_in_window", detail))
        columns = pa.Table.from_pylist(found, SIGNALS)
        return Out(
            with_columns(without(rows, rejects), **{name: columns[name] for name in SIGNALS.names}), rejects
        )
