"""Frame features: unit vectors at a fixed frame rate by an image-text model, the input of text alignment.

CLIP ViT-L/14 at 1 frame per second is a baseline of TAN (R@1 30.9 on HTM-Align):
https://github.com/TengdaHan/TemporalAlignNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems, encode_images, without
from vlpipe.stages.common.by_video import CLIP_FILE, Clip, grid, over_videos
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.embed import dim_in_config
from vlpipe.stages.features.s3d import MAX_WINDOWS, features_type, span
from vlpipe.stages.video.budget import at_most, need_at_most
from vlpipe.stages.video.decode import Exact, Limits
from vlpipe.stages.video.shut_in import open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded


@dataclass(frozen=True, kw_only=True)
class FrameFeatures(MapStage):
    """Adds the heavy column `frame_feats` (see `s3d.features_type`), one entry per frame, and `frame_weights`.

    frame_weights: digest of `model`.
    Rows are videos, or clips if they have start_s and end_s. Frames are taken at multiples of 1 / fps seconds, so that
    overlapping clips of a video share them; each represents 1 / fps seconds. Like images, they are resized to the model's
    square without keeping the aspect ratio. videos: folder or fsspec URL; the column `video` holds paths below it. dim: the
    model's `embed_dim`; required if an earlier step makes the model. deadline_s: for decoding one video, in seconds.
    max_frames: of a row; a row with more is rejected (too_many_windows).
    Further reject codes: those of `video.decode`; damage after a clip's end does not reject the clip.
    """

    NAME: ClassVar[str] = "features.frames:FrameFeatures"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})

    videos: VideosRoot
    model: Weights
    fps: Annotated[float, Field(gt=0)] = 1.0
    dim: int | None = None
    batch_size: int = 16
    deadline_s: Annotated[float, Field(gt=0)] = 600
    max_frames: Annotated[int, Field(ge=1)] = MAX_WINDOWS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.frames", **CLIP_FILE)
        known = self.dim or (None if self.model.step else dim_in_config(Path(self.model.path)))
        if known is None:
            raise SchemaError(
                "features.frames must know the width of its vectors, and there is no config.json of the model (yet) that "
                "contains it: write `dim: 256` (the `embed_dim` of that model) next to `model:`"
            )
        out = with_field(inp, heavy("frame_feats", features_type(known)))
        return with_field(out, pa.field("frame_weights", pa.string()))

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[EmbedsImages])
        dim = model.model.embed_dim
        if self.dim not in (None, dim):
            raise VlpipeError(
                f"the model has embed_dim {dim}, but the step sets dim: {self.dim}; set dim: {dim}"
            )

        def work(rows: pa.Table) -> Out:
            rejects: list[Reject] = []
            names = [n for n in (*CLIP_FILE, "start_s", "end_s") if n in rows.column_names]
            found = over_videos(
                rows.select(names).to_pylist(), lambda some: self._measure(some, model), rejects
            )
            column = pa.array([one or [] for one in found], features_type(dim))
            digests = pa.array([self.model.digest] * rows.num_rows, pa.string())
            return Out(
                without(with_columns(rows, frame_feats=column, frame_weights=digests), rejects), rejects
            )

        yield work

    def _measure(self, rows: Sequence[Clip], model: Loaded) -> list[list[dict[str, Any]]]:
        from PIL import Image

        limits, size = Limits(deadline_s=self.deadline_s), model.image_size
        with open_video(
            root_path(self.videos), rows[0]["video"], limits, num_bytes=rows[0]["num_bytes"]
        ) as video:
            grids = [grid(*span(row, video), self.fps) for row in rows]
            for row, some in zip(rows, grids, strict=True):
                if "end_s" in row or video.info.duration_s is not None:
                    need_at_most(row["video"], len(some), self.max_frames, "max_frames")
            wanted = sorted({k for some in grids for k in some})
            frames = video.frames([k / self.fps for k in wanted], Exact(size, size))
            if "end_s" not in rows[0]:
                frames = at_most(frames, rows[0]["video"], self.max_frames, "max_frames")
            pictures = ((wanted[index], to_pixels(Image.fromarray(frame), size)) for index, frame in frames)
            vectors = encode_images(pictures, model.embed_images, self.batch_size)
            feats = {k: vector.half().cpu().numpy() for k, vector in vectors}
        return [
            self._entries(row, [k for k in some if k in feats], feats)
            for row, some in zip(rows, grids, strict=True)
        ]

    def _entries(self, row: Clip, seen: Sequence[int], feats: dict[int, Any]) -> list[dict[str, Any]]:
        if not seen:
            raise RowFault("no_frames_in_window", f"{row['video']} has no frame in the row's time span")
        return [{"start_s": k / self.fps, "end_s": (k + 1) / self.fps, "feat": feats[k]} for k in seen]
