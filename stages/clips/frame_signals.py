"""Signals from a few frames of a clip: motion, cuts, black or blurred frames, burned-in text, a hash for duplicates.

These are light columns for `filter.rules:Rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.by_video import CLIP_PLACE, Clip, grid, over_videos
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.video.budget import need_at_most
from vlpipe.stages.video.decode import Limits, ShortSide
from vlpipe.stages.video.frame_looks import FPS, SIDE, Look, Looker
from vlpipe.stages.video.frame_measures import BLACK_SHARE
from vlpipe.stages.video.shut_in import open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

SIGNALS = pa.schema(
    [
        ("frames_seen", pa.int32()),
        ("static_ratio", pa.float32()),
        ("motion", pa.float32()),
        ("num_cuts", pa.int32()),
        ("black_ratio", pa.float32()),
        ("blur_ratio", pa.float32()),
        ("burned_text", pa.float32()),
        ("frame_hash", pa.string()),
    ]
)
STATIC_BELOW, CUT_ABOVE, BLUR_BELOW = 1.0, 0.5, 100.0  # our choice


@dataclass(frozen=True, kw_only=True)
class FrameSignals(MapStage):
    """Adds the columns SIGNALS, from `fps` frames per second on a time grid that all clips of a video share.

    frames_seen: number of frames.
    motion: mean absolute change per pixel between consecutive frames, in grey levels; static_ratio: fraction of frame pairs
    with motion below `static_below` (slides with codec noise); both are null if no two consecutive frames were read.
    num_cuts: number of frame pairs whose colours (HSV histogram) change by more than `cut_above`. black_ratio: fraction of
    black frames (98 % of pixels below 32, as in FFmpeg's blackframe); blur_ratio: fraction of frames whose Laplacian
    variance is below `blur_below`, including uniform ones. burned_text: mean fraction of a frame that looks like text, an
    estimate (`frame_measures.text_share`). frame_hash: pHash of the middle frame, to find clips with the same content; null
    if it has too little texture.
    Frames have `side` pixels on the shorter side. `clips.look_signals` gives the same columns without decoding, if a step
    before measured the frames. videos: folder or fsspec URL; the column `video` holds paths below it.
    deadline_s: for decoding one video, in seconds. Defaults without a source are our choice.
    max_frames: of a clip; a clip with more is rejected (too_many_windows). Further reject codes: those of `video.decode`.
    """

    NAME: ClassVar[str] = "clips.frame_signals:FrameSignals"
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})

    videos: VideosRoot
    fps: Annotated[float, Field(gt=0)] = FPS
    side: Annotated[int, Field(ge=32)] = SIDE
    static_below: float = STATIC_BELOW
    cut_above: float = CUT_ABOVE
    blur_below: float = BLUR_BELOW
    deadline_s: Annotated[float, Field(gt=0)] = 600
    max_frames: Annotated[int, Field(ge=1)] = 20_000  # 83 minutes

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "clips.frame_signals", **CLIP_PLACE)
        for field in SIGNALS:
            inp = with_field(inp, field)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._work

    def _work(self, rows: pa.Table) -> Out:
        rejects: list[Reject] = []
        clips = rows.select(list(CLIP_PLACE)).to_pylist()
        found = [one for one in over_videos(clips, self._measure, rejects) if one is not None]
        kept = without(rows, rejects)
        signals = pa.Table.from_pylist(found, SIGNALS)
        return Out(with_columns(kept, **{name: signals[name] for name in SIGNALS.names}), rejects)

    def _measure(self, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        grids = [grid(clip["start_s"], clip["end_s"], self.fps) for clip in clips]
        for clip, some in zip(clips, grids, strict=True):
            need_at_most(clip["video"], len(some), self.max_frames, "max_frames")
        seen = self._read_frames(clips[0], sorted({k for some in grids for k in some}))
        return [
            self._signals(clip, [seen[k] for k in some if k in seen])
            for clip, some in zip(clips, grids, strict=True)
        ]

    def _read_frames(self, clip: Clip, wanted: Sequence[int]) -> dict[int, Look]:
        """Returns {k: measures of the frame at k / fps seconds}, without frames past the end of the video."""
        looker = Looker()
        limits = Limits(deadline_s=self.deadline_s)
        with open_video(root_path(self.videos), clip["video"], limits, num_bytes=clip["num_bytes"]) as video:
            for index, picture in video.frames([k / self.fps for k in wanted], ShortSide(self.side)):
                looker.see(wanted[index], picture)
        return looker.looks

    def _signals(self, clip: Clip, looks: Sequence[Look]) -> dict[str, Any]:
        if not looks:
            detail = f"{clip['video']} has no frame from {clip['start_s']:g} to {clip['end_s']:g} s"
            raise RowFault("no_frames_in_window", detail)
        return signals(looks, self.static_below, self.cut_above, self.blur_below)


def signals(
    looks: Sequence[Look], static_below: float, cut_above: float, blur_below: float
) -> dict[str, Any]:
    """Returns the columns SIGNALS of a clip from the measures of its frames, at least one, by time."""
    inner = looks[1:]  # the first frame's change is relative to a frame before the clip
    moved = [look.moved for look in inner if look.moved is not None]
    return {
        "frames_seen": len(looks),
        "static_ratio": float(np.mean([m < static_below for m in moved])) if moved else None,
        "motion": float(np.mean(moved)) if moved else None,
        "num_cuts": sum(look.changed is not None and look.changed > cut_above for look in inner),
        "black_ratio": float(np.mean([look.dark >= BLACK_SHARE for look in looks])),
        "blur_ratio": float(np.mean([look.sharpness < blur_below for look in looks])),
        "burned_text": float(np.mean([look.text for look in looks])),
        "frame_hash": looks[len(looks) // 2].hash,
    }
