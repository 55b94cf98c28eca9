"""Loads published video networks; the weights determine the architecture and the normalisation of pixels.

The three publications normalise differently, and a wrong normalisation gives plausible but useless features. So it is
derived from the parameter names in the file, and stored with the digest in every feature shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.video.s3d import MIN_FRAMES, S3d, is_kylemin
from vlpipe.models.video.s3dg import S3dG
from vlpipe.models.weights.published import read_state
from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.stages.features.s3d_windows import Frames, Normalisation, Precision, Windows

# (pixel / 255 - mean) / std
MEAN_STD: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0, 0, 0), (1, 1, 1)),  # MIL-NCE: 0 to 1
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # kylemin: -1 to 1
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),  # torchvision
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class VideoNet:
    """A loaded video network with the normalisation of pixels that its weights need."""

    net: S3d | S3dG
    normalisation: Normalisation
    dtype: torch.dtype
    device: torch.device

    @torch.inference_mode()
    def vectors(self, frames: Frames, how: Windows) -> Tensor:
        """Returns one vector per window: (B, T, H, W, 3) -> (B, D) float32 on the CPU; `how` selects which output."""
        pixels = normalised(torch.from_numpy(frames).to(self.device), self.normalisation)
        pixels = pixels.to(self.dtype, memory_format=torch.channels_last_3d)
        found = (self.net.pooled(pixels) if how.vector == "pooled" else self.net(pixels)).float()
        if how.l2:
            found = torch.nn.functional.normalize(found, dim=1)
        return found.cpu()


def normalised(frames: Tensor, normalisation: str) -> Tensor:
    """Normalises pixels: (B, T, H, W, 3), 0 to 255 -> (B, 3, T, H, W) float32."""
    mean, std = (torch.tensor(v, device=frames.device).view(1, 3, 1, 1, 1) for v in MEAN_STD[normalisation])
    return (frames.permute(0, 4, 1, 2, 3).float() / 255 - mean) / std


def load(weights: Weights, how: Windows, precision: Precision, said: Normalisation | None = None) -> VideoNet:
    """Returns the network, on a GPU if the step requests one. said: the step's `normalisation`; None if it sets none.

    Raises VlpipeError if the weights are not a known network, or do not fit the windows or `said`.
    """
    state = _read(weights)
    problems = _problems(state, how, said)
    if problems:
        raise VlpipeError(f"{weights.path}: {'; '.join(problems)}")
    device = torch.device(device_of_step())
    dtype = DTYPES[precision]
    try:
        net = (S3dG if is_mil_nce(state) else S3d).from_state(state).eval().to(device, dtype)
    except ValueError as error:
        raise VlpipeError(f"{weights.path}: {error}") from error
    # channels last: on an EPYC core 0.63 -> 0.27 s per window of 16 frames in bf16, 0.95 -> 0.90 s in fp32
    net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # unknown to torch's stubs
    return VideoNet(net, normalisation_of(state), dtype, device)


def problems_of(weights: Weights, how: Windows, said: Normalisation | None) -> list[str]:
    """Returns the problems of weights that are a local file or folder, one line each, for `preflight`. Empty if it fits."""
    try:
        return _problems(_read(weights), how, said)
    except VlpipeError as error:
        return [str(error)]


def weights_id(weights: Weights, net: VideoNet) -> str:
    """Returns the value of the column `s3d_weights`. Features with different values must not be mixed."""
    return f"{weights.digest}:{net.normalisation}"


def is_mil_nce(state: Mapping[str, Any]) -> bool:
    return any(name.startswith(("conv_2c.", "mixed_3b.")) for name in state)


def normalisation_of(state: Mapping[str, Any]) -> Normalisation:
    if is_mil_nce(state):
        return "unit"
    return "signed" if is_kylemin(state) else "kinetics"


def _read(weights: Weights) -> dict[str, Tensor]:
    try:
        return read_state(weights.path)
    except ValueError as error:
        raise VlpipeError(str(error)) from error


def _problems(state: Mapping[str, Tensor], how: Windows, said: Normalisation | None) -> list[str]:
    kinetics, normalisation = not is_mil_nce(state), normalisation_of(state)
    problems = []
    if said not in (None, normalisation):
        names = {"unit": "MIL-NCE's", "signed": "kylemin's", "kinetics": "torchvision's"}
        problems.append(
            f"the step sets normalisation: {said}, but these are {names[normalisation]} weights, "
            f"which need normalisation: {normalisation}"
        )
    if kinetics and how.vector == "embedding":
        problems.append(
            "vector: embedding needs weights of MIL-NCE's S3D-G, but these are of Kinetics S3D; set vector: pooled"
        )
    if kinetics and how.num_seen < MIN_FRAMES:
        problems.append(f"S3D needs at least {MIN_FRAMES} frames in a window, got {how.num_seen}")
    stem = state.get("conv1.conv1.weight")
    if stem is not None and stem.shape[1] == 24 and (how.num_seen % 2 or how.side % 2):
        problems.append(
            "S3D-G with space-to-depth needs an even number of frames and an even side, "
            f"got {how.num_seen} and {how.side}"
        )
    head = state.get("fc.weight")
    if not kinetics and how.vector == "embedding" and head is not None and len(head) != how.dim:
        problems.append(
            f"vector: embedding has {how.dim} dimensions, but these weights give {len(head)}; set vector: pooled, or use "
            "MIL-NCE's weights"
        )
    return problems
