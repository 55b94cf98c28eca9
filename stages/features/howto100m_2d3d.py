"""HowTo100M's original features: 2D (ResNet-152, 1 per second) and 3D (ResNeXt-101, 1.5 per second).

Miech et al. 2019, https://arxiv.org/abs/1906.03327; frame rates, sizes and pixel means are those of
https://github.com/antoine77340/video_feature_extractor, the pooling over a clip that of https://github.com/antoine77340/howto100m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import fixed_batches, without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.s3d import FILE, MAX_WINDOWS, span
from vlpipe.stages.features.s3d_windows import (
    Frames,
    Precision,
    Windows,
    av_problems,
    batch_size_problems,
    cut,
)
from vlpipe.stages.video.budget import at_most, need_at_most
from vlpipe.stages.video.decode import Limits, ShortSide, Size, Square, sample_times
from vlpipe.stages.video.shut_in import ShutInVideo, open_video
from vlpipe.stages.video.video_root import VideosRoot, root_path

if TYPE_CHECKING:
    import torch

DIM = 2048
FPS_2D, SIDE_2D = 1.0, 224  # the whole frame, shorter side 224 pixels
MEAN_2D, STD_2D = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of pixels / 255
FPS_3D, SIDE_3D, FRAMES_3D = 24.0, 112, 16
RATE_3D = FPS_3D / FRAMES_3D  # 1.5 features per second
MEAN_3D = (110.6, 103.2, 96.3)  # of pixels from 0 to 255, which are not divided by a standard deviation
VECTORS = pa.list_(pa.list_(pa.float16(), DIM))
Vectors = npt.NDArray[np.float16]
Encode = Callable[[Frames], "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Features2d3d(MapStage):
    """For videos: adds the heavy columns `feat_2d` (1 per second) and `feat_3d` (1.5 per second), unit vectors (N, 2048).

    For clips (rows with `start_s` and `end_s`): adds the heavy `feat_2d3d` (4096,), pooled as in `clip_feature`; only the
    frames needed are decoded. For both: `feat_2d3d_weights`, the digests of the two networks, joined by "+".
    weights_2d: torchvision's ResNet-152; weights_3d: kenshohara's `resnext-101-kinetics`. Other parameters and
    reject codes: as in `features.s3d`.
    """

    NAME: ClassVar[str] = "features.howto100m_2d3d:Features2d3d"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"videos", "deadline_s"})
    ROW_GROUP_ROWS: ClassVar[int] = 16  # a video of 6.5 minutes takes 4 MB

    videos: VideosRoot
    weights_2d: Weights
    weights_3d: Weights
    precision: Precision = "fp32"
    batch_size: int = 1
    deadline_s: Annotated[float, Field(gt=0)] = 600
    max_windows: Annotated[int, Field(ge=1)] = MAX_WINDOWS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "features.howto100m_2d3d", id=pa.string(), **FILE)
        if "start_s" in inp.names:
            fields = [heavy("feat_2d3d", pa.list_(pa.float16(), 2 * DIM))]
        else:
            fields = [heavy("feat_2d", VECTORS), heavy("feat_3d", VECTORS)]
        for field in (*fields, pa.field("feat_2d3d_weights", pa.string())):
            inp = with_field(inp, field)
        return inp

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + av_problems()

    @contextmanager
    def open(self) -> Iterator[Work]:
        encode_2d, encode_3d = self._encoders()
        identity = f"{self.weights_2d.digest}+{self.weights_3d.digest}"

        def work(rows: pa.Table) -> Out:
            rejects: list[Reject] = []
            columns: dict[str, list[Any]] = {}
            for row in rows.to_pylist():
                try:
                    found = self._row(row, encode_2d, encode_3d)
                except RowFault as fault:
                    rejects.append(Reject(row["id"], "fault", fault.why, fault.detail))
                    continue
                for name, value in found.items():
                    columns.setdefault(name, []).append(value)
            kept = without(rows, rejects)
            schema = self.schema(rows.schema)
            names = [n for n in ("feat_2d", "feat_3d", "feat_2d3d") if n in schema.names]
            arrays = {n: pa.array(columns.get(n, []), schema.field(n).type) for n in names}
            identities = pa.array([identity] * kept.num_rows, pa.string())
            return Out(with_columns(kept, **arrays, feat_2d3d_weights=identities), rejects)

        yield work

    def _row(self, row: Mapping[str, Any], encode_2d: Encode, encode_3d: Encode) -> dict[str, Any]:
        limits = Limits(deadline_s=self.deadline_s)
        with open_video(root_path(self.videos), row["video"], limits, num_bytes=row["num_bytes"]) as video:
            start_s, end_s = span(row, video)
            declared_s = end_s - start_s if "end_s" in row else video.info.duration_s or 0
            need_at_most(row["video"], int(declared_s * RATE_3D), self.max_windows, "max_windows")
            if "start_s" not in row:
                return {
                    "feat_2d": list(self._vectors_2d(video, row["video"], 0, end_s, encode_2d)),
                    "feat_3d": list(self._vectors_3d(video, row["video"], 0, end_s, encode_3d)),
                }
            first_2d, stop_2d = places(start_s, end_s, FPS_2D)
            first_3d, stop_3d = places(start_s, end_s, RATE_3D)
            found_2d = self._vectors_2d(video, row["video"], first_2d / FPS_2D, stop_2d / FPS_2D, encode_2d)
            found_3d = self._vectors_3d(video, row["video"], first_3d / RATE_3D, stop_3d / RATE_3D, encode_3d)
            return {"feat_2d3d": pooled(found_2d, found_3d)}

    def _vectors_2d(
        self, video: ShutInVideo, name: str, start_s: float, end_s: float, encode: Encode
    ) -> Vectors:
        return self._encoded(_frames(video, start_s, end_s, FPS_2D, ShortSide(SIDE_2D)), name, encode)

    def _vectors_3d(
        self, video: ShutInVideo, name: str, start_s: float, end_s: float, encode: Encode
    ) -> Vectors:
        how = Windows(fps=FPS_3D, frames=FRAMES_3D, stride=FRAMES_3D)
        frames = _frames(video, start_s, end_s, FPS_3D, Square(SIDE_3D))
        return self._encoded((window.frames for window in cut(frames, how)), name, encode)

    def _encoded(self, items: Iterable[Frames], name: str, encode: Encode) -> Vectors:
        """Returns (N, 2048). A batch contains frames of one row only, because frame sizes differ between rows."""
        import torch

        found = [np.empty((0, DIM), np.float16)]
        for batch, num_real in fixed_batches(
            at_most(items, name, self.max_windows, "max_windows"), self.batch_size
        ):
            vectors = torch.nn.functional.normalize(encode(np.stack(batch)).float(), dim=1)
            found.append(vectors[:num_real].half().cpu().numpy())
        return np.concatenate(found)

    def _encoders(self) -> tuple[Encode, Encode]:
        import torch

        from vlpipe.models.video.resnext3d import ResNeXt3d
        from vlpipe.models.weights.published import read_state
        from vlpipe.stages.features.s3d_weights import DTYPES

        device = torch.device(device_of_step())
        dtype = DTYPES[self.precision]
        try:
            net_2d = resnet(read_state(self.weights_2d.path)).eval().to(device, dtype)
            net_3d = ResNeXt3d.load(self.weights_3d.path).eval().to(device, dtype)
        except ValueError as error:
            raise VlpipeError(f"features.howto100m_2d3d: {error}") from error
        for name, width in (("weights_2d", net_2d.width_out), ("weights_3d", net_3d.width_out)):
            if width != DIM:
                raise VlpipeError(
                    f"features.howto100m_2d3d: {name}: wanted weights whose features have {DIM} dimensions, got {width}"
                )
        mean_2d, std_2d, mean_3d = (torch.tensor(v, device=device) for v in (MEAN_2D, STD_2D, MEAN_3D))

        @torch.inference_mode()
        def encode_2d(frames: Frames) -> torch.Tensor:  # (B, H, W, 3)
            pixels = (torch.from_numpy(frames).to(device) / 255 - mean_2d) / std_2d
            return net_2d.features(pixels.permute(0, 3, 1, 2).to(dtype))

        @torch.inference_mode()
        def encode_3d(frames: Frames) -> torch.Tensor:  # (B, T, H, W, 3)
            pixels = torch.from_numpy(frames).to(device) - mean_3d
            return net_3d.pooled(pixels.permute(0, 4, 1, 2, 3).to(dtype))

        return encode_2d, encode_3d


def clip_feature(feat_2d: Vectors, feat_3d: Vectors, start_s: float, end_s: float) -> Vectors:
    """Pools a clip from its video's features (N, 2048) and (M, 2048) -> (4096,), as HowTo100M's loader does.

    For each: max over rows int(start_s * rate) to int(end_s * rate) inclusive, with 1 (2D) and 1.5 (3D) rows per second,
    then divided by its norm. Raises RowFault no_frames_in_window if the clip starts after the last row.
    """
    return pooled(
        *(
            vectors[slice(*places(start_s, end_s, rate))]
            for vectors, rate in ((feat_2d, FPS_2D), (feat_3d, RATE_3D))
        )
    )


def places(start_s: float, end_s: float, rate: float) -> tuple[int, int]:
    """Returns (first, stop): `first` to `stop` - 1 are the rows of a time span in features with `rate` rows per second."""
    return int(start_s * rate), int(end_s * rate) + 1


def pooled(*parts: Vectors) -> Vectors:
    found = []
    for vectors in parts:
        if not len(vectors):
            raise RowFault("no_frames_in_window", "the clip starts after the last feature of its video")
        greatest = vectors.astype(np.float32).max(axis=0)
        found.append(greatest / max(float(np.linalg.norm(greatest)), 1e-12))
    return np.concatenate(found).astype(np.float16)


def resnet(state: Mapping[str, torch.Tensor]) -> Any:
    """Returns the ResNet of a state dict with torchvision's names, which determine its depth.

    Raises ValueError if names or shapes are not those of a ResNet.
    """
    from vlpipe.models.video.resnet import ResNet
    from vlpipe.models.weights.published import fill

    if "conv1.weight" not in state or "fc.weight" not in state:
        raise ValueError(
            "ResNet: wanted torchvision's weights, with tensors conv1.weight and fc.weight; the first tensors are "
            + ", ".join(sorted(state)[:3])
        )
    depths: list[int] = []
    while num := len({n.split(".")[1] for n in state if n.startswith(f"layer{len(depths) + 1}.")}):
        depths.append(num)
    net = ResNet(depths=depths, width=len(state["conv1.weight"]), num_classes=len(state["fc.weight"]))
    fill(net, state, "ResNet")
    return net


def _frames(video: ShutInVideo, start_s: float, end_s: float, fps: float, size: Size) -> Iterator[Frames]:
    return (picture for _, picture in video.frames(list(sample_times(start_s, end_s, fps)), size))
