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
from vlpipe.stages.common.batches import Pixels, batch_size_problems, encode_images, without
from vlpipe.stages.common.by_video import CLIP_FILE, Clip, grid, over_videos
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.embed import dim_in_config
from vlpipe.stages.features.s3d import MAX_WINDOWS, features_type, span
from vlpipe.stages.video.budget import at_most, need_at_most
from vlpipe.stages.video.decode import Exact, Limits, ShortSide
from vlpipe.stages.video.frame_looks import LOOKS, Grid, Looker
from vlpipe.stages.video.shut_in import ShutInVideo, open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

Entries = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class FrameFeatures(MapStage):
    """Adds the heavy column `frame_feats` (see `s3d.features_type`), one entry per frame, and `frame_weights`.

    frame_weights: digest of `model`.
    Rows are videos, or clips if they have start_s and end_s. Frames are taken at multiples of 1 / fps seconds, so that
    overlapping clips of a video share them; each represents 1 / fps seconds. Like images, they are resized to the model's
    square without keeping the aspect ratio. videos: folder or fsspec URL; the column `video` holds paths below it. dim: the
    model's `embed_dim`; required if an earlier step makes the model. deadline_s: for decoding one video, in seconds.
    max_frames: of a row; a row with more is rejected (too_many_windows).
    looks: a second time grid, decoded along with the first one, each frame once. Its frames are measured: heavy column
    `frame_looks` (see `video.frame_looks`), from which `clips.look_signals` makes the signals of clips. `{}`: 4 frames per
    second, 96 pixels on the shorter side.
    Further reject codes: those of `video.decode`; damage after a clip's end does not reject the clip.
    """

    NAME: ClassVar[str] = "features.frames:FrameFeatures"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})
    ADDED: ClassVar[frozenset[str]] = frozenset({"looks"})

    videos: VideosRoot
    model: Weights
    fps: Annotated[float, Field(gt=0)] = 1.0
    dim: int | None = None
    batch_size: int = 16
    deadline_s: Annotated[float, Field(gt=0)] = 600
    max_frames: Annotated[int, Field(ge=1)] = MAX_WINDOWS
    looks: Grid | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.frames", **CLIP_FILE)
        known = self.dim or (None if self.model.step else dim_in_config(Path(self.model.path)))
        if known is None:
            raise SchemaError(
                "features.frames must know the width of its vectors, and there is no config.json of the model (yet) that "
                "contains it: write `dim: 256` (the `embed_dim` of that model) next to `model:`"
            )
        out = with_field(inp, heavy("frame_feats", features_type(known)))
        out = with_field(out, pa.field("frame_weights", pa.string()))
        return with_field(out, heavy("frame_looks", LOOKS)) if self.looks else out

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
            pairs = [one or ([], []) for one in found]
            columns = {"frame_feats": pa.array([feats for feats, _ in pairs], features_type(dim))}
            columns["frame_weights"] = pa.array([self.model.digest] * rows.num_rows, pa.string())
            if self.looks:
                columns["frame_looks"] = pa.array([looks for _, looks in pairs], LOOKS)
            return Out(without(with_columns(rows, **columns), rejects), rejects)

        yield work

    def _measure(self, rows: Sequence[Clip], model: Loaded) -> list[tuple[Entries, Entries]]:
        """Returns (entries of `frame_feats`, entries of `frame_looks`) of each row; the latter are empty without `looks`."""
        from PIL import Image

        limits, size = Limits(deadline_s=self.deadline_s), model.image_size
        with open_video(
            root_path(self.videos), rows[0]["video"], limits, num_bytes=rows[0]["num_bytes"]
        ) as video:
            seen, looked = self._grids(rows, video)
            wanted = [(k / self.fps, False, k) for k in _all(seen)]
            if self.looks:
                wanted += [(k / self.looks.fps, True, k) for k in _all(looked)]
            wanted.sort()  # by time: a frame of both grids is decoded once
            side = ShortSide(self.looks.side if self.looks else size)
            sizes = [side if is_look else Exact(size, size) for _, is_look, _ in wanted]
            frames = video.frames([time_s for time_s, _, _ in wanted], sizes)
            looker = Looker()

            def pictures() -> Iterator[tuple[int, Pixels]]:
                for index, frame in frames:
                    _, is_look, k = wanted[index]
                    if is_look:
                        looker.see(k, frame)
                    else:
                        yield k, to_pixels(Image.fromarray(frame), size)

            found = pictures()
            if "end_s" not in rows[0]:
                found = at_most(found, rows[0]["video"], self.max_frames, "max_frames")
            vectors = encode_images(found, model.embed_images, self.batch_size)
            feats = {k: vector.half().cpu().numpy() for k, vector in vectors}
        return [
            (self._entries(row, [k for k in some if k in feats], feats), self._looked(looker, others))
            for row, some, others in zip(rows, seen, looked, strict=True)
        ]

    def _grids(self, rows: Sequence[Clip], video: ShutInVideo) -> tuple[list[range], list[range]]:
        """Returns the frame numbers of each row, of both grids. Raises RowFault (too_many_windows)."""
        spans = [span(row, video) for row in rows]
        seen = [grid(*one, self.fps) for one in spans]
        looked = [grid(*one, self.looks.fps) if self.looks else range(0) for one in spans]
        for row, some, others in zip(rows, seen, looked, strict=True):
            if "end_s" in row or video.info.duration_s is not None:
                need_at_most(row["video"], max(len(some), len(others)), self.max_frames, "max_frames")
        return seen, looked

    def _entries(self, row: Clip, seen: Sequence[int], feats: dict[int, Any]) -> Entries:
        if not seen:
            raise RowFault("no_frames_in_window", f"{row['video']} has no frame in the row's time span")
        return [{"start_s": k / self.fps, "end_s": (k + 1) / self.fps, "feat": feats[k]} for k in seen]

    def _looked(self, looker: Looker, some: Sequence[int]) -> Entries:
        return [looker.entry(k, self.looks.fps) for k in some if k in looker.looks] if self.looks else []


def _all(grids: Sequence[range]) -> list[int]:
    return sorted({k for some in grids for k in some})
