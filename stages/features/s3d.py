"""Computes S3D features of videos or clips, one vector per window, with exact times and the identity of the weights.

Frames stream from the decoder through windows into the network; at most one batch of windows is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, SchemaError, did_you_mean
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import HEAVY, Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import fixed_batches, without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.s3d_windows import (
    PRESETS,
    Frames,
    Normalisation,
    Precision,
    Window,
    Windows,
    av_problems,
    batch_size_problems,
    cut,
)
from vlpipe.stages.video.budget import at_most, need_at_most
from vlpipe.stages.video.decode import Limits, Square, sample_times
from vlpipe.stages.video.shut_in import ShutInVideo, open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

if TYPE_CHECKING:
    from vlpipe.stages.features.s3d_weights import VideoNet

MAX_WINDOWS = 20_000  # 5.5 hours at one window per second; 41 MB of features
MAX_S = 24 * 3600  # max duration, for a video whose header has none or an absurd one
SLACK_S = 10  # seconds read after the end that the header declares, which may be too early
FILE = {"video": pa.string(), "num_bytes": pa.int64()}


def features_type(dim: int) -> pa.DataType:
    """Returns the Arrow type of a feature column: one entry per window, by time; seconds from the start of the video."""
    return pa.list_(
        pa.struct(
            [
                ("start_s", pa.float32()),
                ("end_s", pa.float32()),
                ("feat", pa.list_(pa.float16(), dim)),
            ]
        )
    )


@dataclass(frozen=True, kw_only=True)
class S3dFeatures(MapStage):
    """Adds the heavy column `s3d` (see `features_type`) and `s3d_weights`, "digest of the weights:normalisation".

    Rows are videos, or clips if they have `start_s` and `end_s`. A row whose video cannot be decoded is rejected with the
    decoder's code, or with `not_finite` if a feature overflows float16.
    videos: folder or fsspec URL; the column `video` holds paths below it. weights: torchvision's or kylemin's S3D, or
    MIL-NCE's S3D-G: a file, a folder or a hub id. windows: a preset (videobert hero mmpt univl coot), or the fields of
    `Windows`. normalisation: of pixels: unit (MIL-NCE), signed (kylemin) or kinetics (torchvision). The weights determine
    it; set it only as a check: the step fails if it disagrees, for local weights already in the plan.
    precision: of the network. bf16 is 3 times as fast as fp32 on a CPU with AVX-512 BF16; fp16 is for GPUs (about 40
    times slower on a CPU).
    batch_size: windows per forward pass: 1, which keeps a CPU core busy, or a multiple of 16, for a GPU.
    deadline_s: for decoding one video, in seconds. max_windows: of a row; a row with more is rejected (too_many_windows).
    """

    NAME: ClassVar[str] = "features.s3d:S3dFeatures"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})
    ROW_GROUP_ROWS: ClassVar[int] = 64  # 6.5 minutes at 1 window per second take 0.8 MB

    videos: VideosRoot
    weights: Weights
    windows: str | Windows
    normalisation: Normalisation | None = None
    precision: Precision = "fp32"
    batch_size: int = 1
    deadline_s: Annotated[float, Field(gt=0)] = 600
    max_windows: Annotated[int, Field(ge=1)] = MAX_WINDOWS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.s3d", id=pa.string(), **FILE)
        how = self.how()
        metadata = {HEAVY: b"1", b"windows": json.dumps(asdict(how), sort_keys=True).encode()}
        field = pa.field("s3d", features_type(how.dim), metadata=metadata)
        return with_field(with_field(inp, field), pa.field("s3d_weights", pa.string()))

    def preflight(self) -> list[str]:
        from vlpipe.stages.features.s3d_weights import problems_of

        problems = batch_size_problems(self.batch_size) + av_problems()
        if not self.weights.step and Path(self.weights.path).exists():
            problems += problems_of(self.weights, self.how(), self.normalisation)
        return problems

    def how(self) -> Windows:
        """Returns the windows, those of a preset if `windows` is a name. Raises SchemaError for an unknown preset."""
        if isinstance(self.windows, Windows):
            return self.windows
        if self.windows not in PRESETS:
            raise SchemaError(
                f"features.s3d has no preset of windows {self.windows!r}{did_you_mean(self.windows, PRESETS)}"
            )
        return PRESETS[self.windows]

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.features.s3d_weights import load, weights_id

        how = self.how()
        net = load(self.weights, how, self.precision, self.normalisation)
        identity = weights_id(self.weights, net)

        def work(rows: pa.Table) -> Out:
            features, rejects = self._features(rows, net, how)
            column = pa.array(features, features_type(how.dim))
            identities = pa.array([identity] * rows.num_rows, pa.string())
            return Out(without(with_columns(rows, s3d=column, s3d_weights=identities), rejects), rejects)

        yield work

    def _features(
        self, rows: pa.Table, net: VideoNet, how: Windows
    ) -> tuple[list[list[dict[str, Any]]], list[Reject]]:
        found: list[list[dict[str, Any]]] = [[] for _ in range(rows.num_rows)]
        rejects: dict[int, Reject] = {}
        windows = self._windows(rows, how, rejects)
        for batch, num_real in fixed_batches(windows, self.batch_size):
            vectors = net.vectors(np.stack([window.frames for _, _, window in batch]), how).half()
            for (row, offset_s, window), vector in zip(batch[:num_real], vectors.numpy(), strict=False):
                start_s, end_s = how.seconds(window.first, window.num_real)
                if not np.isfinite(vector).all():
                    detail = (
                        f"the feature of the window at {offset_s + start_s:.2f} s is not finite in float16"
                    )
                    rejects.setdefault(row, Reject(rows["id"][row].as_py(), "fault", "not_finite", detail))
                found[row].append({"start_s": offset_s + start_s, "end_s": offset_s + end_s, "feat": vector})
        return found, list(rejects.values())

    def _windows(
        self, rows: pa.Table, how: Windows, rejects: dict[int, Reject]
    ) -> Iterator[tuple[int, float, Window]]:
        """Yields (row number, start of the row's time span in seconds, window); adds undecodable rows to `rejects`."""
        spans = "start_s" in rows.schema.names and "end_s" in rows.schema.names
        columns = ["id", *FILE, *(("start_s", "end_s") if spans else ())]
        for number, row in enumerate(rows.select(columns).to_pylist()):
            try:
                windows = cut(self._frames(row, how), how)
                for window in at_most(windows, row["video"], self.max_windows, "max_windows"):
                    yield number, row.get("start_s", 0.0), window
            except RowFault as fault:
                rejects[number] = Reject(row["id"], "fault", fault.why, fault.detail)

    def _frames(self, row: dict[str, Any], how: Windows) -> Iterator[Frames]:
        limits = Limits(deadline_s=self.deadline_s)
        with open_video(root_path(self.videos), row["video"], limits, num_bytes=row["num_bytes"]) as video:
            start_s, end_s = span(row, video)
            declared_s = row["end_s"] - start_s if "end_s" in row else video.info.duration_s or 0
            need_at_most(row["video"], how.num_windows(declared_s), self.max_windows, "max_windows")
            times = sample_times(start_s, end_s, how.fps)
            if not len(times):
                raise RowFault(
                    "no_frames_in_window",
                    f"{row['video']}: the row's time span, {start_s:g} to {end_s:g} s, is empty",
                )
            for _, picture in video.frames(list(times), Square(how.side)):
                yield picture


def span(row: Mapping[str, Any], video: ShutInVideo) -> tuple[float, float]:
    """Returns start and end in seconds: the clip's; for a video, 0 and its duration + SLACK_S, as headers may be wrong."""
    length_s = video.info.duration_s
    end_s = MAX_S if length_s is None else min(length_s + SLACK_S, MAX_S)
    return row.get("start_s", 0.0), row.get("end_s", end_s)
