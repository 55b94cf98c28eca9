"""Frames of clips, decoded when a sample is made: S3D-G's input, from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.loading.makers.base import ROW, Item, Maker, note
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.video.decode import Limits, ShortSide
from vlpipe.stages.video.shut_in import open_video

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream


@dataclass(frozen=True, kw_only=True)
class RawClips(Maker):
    """Frames (B, 1, 3, T, H, W) of a random part of a clip, from 0 to 1 on the device of the model.

    videos: folder or fsspec URL; the column `video` holds paths below it. frames, fps: T and their number per second; 32 at
    10, 3.2 s, in MIL-NCE. size: H = W, a random crop of a frame whose shorter side is `short_side`. flip: half of the
    clips are mirrored. A part that goes on after the video's end has black frames there. Raises VlpipeError for a video
    that cannot be decoded or has no frame there.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("video", "num_bytes", "start_s", "end_s")

    videos: str = ""
    frames: int = 32
    fps: float = 10.0
    size: int = 224
    short_side: int = 256
    flip: bool = True
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.fps <= 0 or not 1 <= self.size <= self.short_side:
            raise ValueError(
                "streams: wanted frames >= 1, fps > 0 and size from 1 to short_side, got "
                f"{self.frames}, {self.fps:g}, {self.size} and {self.short_side}"
            )

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        if not self.videos:
            raise VlpipeError("streams: set `videos`, the folder of the video files, for raw clips")
        about = row.columns
        last_s = max(about["start_s"], about["end_s"] - self.frames / self.fps)
        start_s = rng.uniform(about["start_s"], last_s)
        times = [start_s + k / self.fps for k in range(self.frames)]
        found = np.zeros((self.frames, self.size, self.size, 3), np.uint8)
        corner, flipped = rng.random(2), self.flip and rng.random() < 0.5
        try:
            limits = Limits(deadline_s=self.deadline_s)
            with open_video(self.videos, about["video"], limits, num_bytes=about["num_bytes"]) as video:
                for at, frame in video.frames(times, ShortSide(self.short_side)):
                    top, left = ((corner * (np.array(frame.shape[:2]) - self.size + 1)).astype(int)).tolist()
                    found[at] = frame[top : top + self.size, left : left + self.size]
        except RowFault as fault:
            raise VlpipeError(
                f"training: the video of row {row.id} cannot be decoded ({fault}); add a step before training that rejects "
                "such rows"
            ) from fault
        return {"data": (found[:, :, ::-1] if flipped else found).copy(), ROW: note(row.image_id)}

    def on_device(self, stream: Stream) -> Stream:
        """Returns (B, T, H, W, 3) uint8 as the model reads it."""
        return replace(stream, data=stream.data.permute(0, 4, 1, 2, 3)[:, None].float() / 255)
