"""Converts clips to images: some frames of each clip become image rows with its texts, for all stages that read images.

They serve to train an image-text model, to filter texts by `filter.clip` or `filter.itm`, or to find duplicates by `dedup`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.by_video import CLIP_PLACE, Clip, over_videos
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, TEXTS, RowIds
from vlpipe.stages.video.decode import Limits, ShortSide
from vlpipe.stages.video.shut_in import open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

FRAMES = pa.schema([*LISTED, ("parent", pa.string()), ("time_s", pa.float64()), *IMAGE_FIELDS])


@dataclass(frozen=True, kw_only=True)
class ClipFrames(MapStage):
    """Turns clip rows into image rows (FRAMES): `num_frames` PNGs per clip, at the centres of equal parts of its time span.

    videos: folder or fsspec URL; the column `video` holds paths below it. side: length of the shorter side, in pixels.
    deadline_s: for decoding one video, in seconds. `url` is the clip's URL + "#t=SECONDS". A clip that extends past the end
    of its video has fewer frames. Reject codes: those of `video.decode`.
    """

    NAME: ClassVar[str] = "clips.frames:ClipFrames"
    FAN_OUT: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})

    videos: VideosRoot
    num_frames: Annotated[int, Field(ge=1)] = 1
    side: Annotated[int, Field(ge=16)] = 256
    deadline_s: Annotated[float, Field(gt=0)] = 600

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "clips.frames", url=pa.string(), texts=TEXTS, **CLIP_PLACE)
        return FRAMES

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._work

    def _work(self, rows: pa.Table) -> Out:
        rejects: list[Reject] = []
        clips = rows.select(["url", "texts", *CLIP_PLACE]).to_pylist()
        found = over_videos(clips, self._cut, rejects)
        return Out(pa.Table.from_pylist([row for some in found for row in some or ()], FRAMES), rejects)

    def _cut(self, clips: Sequence[Clip]) -> list[list[dict[str, Any]]]:
        times = [self._times(clip) for clip in clips]
        wanted = sorted({time_s for some in times for time_s in some})
        limits = Limits(deadline_s=self.deadline_s)
        with open_video(
            root_path(self.videos), clips[0]["video"], limits, num_bytes=clips[0]["num_bytes"]
        ) as video:
            frames = video.frames(wanted, ShortSide(self.side))
            images = {wanted[index]: png(picture) for index, picture in frames}
        return [
            list(self._rows(clip, [(t, images[t]) for t in some if t in images]))
            for clip, some in zip(clips, times, strict=True)
        ]

    def _times(self, clip: Clip) -> list[float]:
        step_s = (clip["end_s"] - clip["start_s"]) / self.num_frames
        return [clip["start_s"] + (k + 0.5) * step_s for k in range(self.num_frames)]

    def _rows(self, clip: Clip, images: Sequence[tuple[float, Png]]) -> Iterator[dict[str, Any]]:
        if not images:
            first_s = self._times(clip)[0]
            raise RowFault(
                "no_frames_in_window",
                f"the video {clip['video']} ends before the first frame of the clip, at {first_s:g} s",
            )
        ids = RowIds(f"clips.frames:{clip['id']}")
        for time_s, (data, width, height) in images:
            url = f"{clip['url']}#t={time_s:.3f}"
            yield {
                "id": ids.next(url, ""),
                "url": url,
                "texts": clip["texts"],
                "parent": clip["id"],
                "time_s": time_s,
                "sha256": hashlib.sha256(data).hexdigest(),
                "format": "PNG",
                "width": width,
                "height": height,
                "image": data,
            }


class Png(NamedTuple):
    data: bytes
    width: int
    height: int


def png(picture: npt.NDArray[np.uint8]) -> Png:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return Png(file.getvalue(), picture.shape[1], picture.shape[0])
