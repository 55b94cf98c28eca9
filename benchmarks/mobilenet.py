"""MobileNetV2 embeddings of photos, for benchmarks: a forward pass in torch that follows a layer list of TFLite.

M. Sandler et al., "MobileNetV2", CVPR 2018, https://arxiv.org/abs/1801.04381.
Needs a folder with `ops.json` (the layers, NHWC) and `dequantised_fp16.npz` (OHWI weights,
BatchNorm folded in), as VLPIPE_DATA/mobilenetv2 is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

SIZE, DIM, BATCH = 224, 1280, 32


class MobileNet:
    """`embed(photos)`: the mean of the last feature map, (N, 1280), unit norm."""

    def __init__(self, folder: Path) -> None:
        self.layers = json.loads((folder / "ops.json").read_text())
        weights = np.load(folder / "dequantised_fp16.npz")
        self.weights = {int(n.partition("|")[0]): torch.from_numpy(weights[n]).float() for n in weights.files}

    def embed(self, photos: Iterable[Image.Image]) -> npt.NDArray[np.float32]:
        found = [np.zeros((0, DIM), np.float32)]
        for batch in _batches(photos):
            with torch.inference_mode():
                found.append(self._features(batch).numpy())
        return np.concatenate(found)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) in [-1, 1] -> (B, 1280), unit norm"""
        known: dict[int, torch.Tensor] = {}
        for layer in self.layers:
            (first, _, shape), (out, name, out_shape) = layer["inputs"][0], layer["outputs"][0]
            x = known.get(first, pixels)
            if layer["op"] == "MEAN":
                return F.normalize(x.mean(dim=(2, 3)), dim=1)
            known[out] = self._apply(layer, x, known, stride=_stride(shape, out_shape), relu="relu" in name)
        raise ValueError("the layer list has no MEAN")

    def _apply(
        self,
        layer: dict[str, Any],
        x: torch.Tensor,
        known: dict[int, torch.Tensor],
        *,
        stride: int,
        relu: bool,
    ) -> torch.Tensor:
        if layer["op"] in ("QUANTIZE", "PAD"):  # the convolution below pads
            return x
        second = layer["inputs"][1][0]
        if layer["op"] == "ADD":
            return x + known[second]
        weight, bias = self.weights[second], self.weights[layer["inputs"][2][0]]
        deep = layer["op"] == "DEPTHWISE_CONV_2D"
        weight = weight.permute(3, 0, 1, 2) if deep else weight.permute(0, 3, 1, 2)
        if weight.shape[-1] == 3:  # "SAME" of TensorFlow: at stride 2 only right and below
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = F.conv2d(x, weight, bias, stride=stride, groups=len(weight) if deep else 1)
        return x.clamp_(0, 6) if relu else x


def _stride(shape: list[int], out_shape: list[int]) -> int:
    """A padded input has an odd side: 113 -> 56."""
    return 2 if len(out_shape) == 4 and shape[1] // 2 == out_shape[1] and shape[1] > out_shape[1] else 1


def _batches(photos: Iterable[Image.Image]) -> Iterator[torch.Tensor]:
    photos = iter(photos)
    while batch := list(islice(photos, BATCH)):
        yield torch.stack([_pixels(photo) for photo in batch])


def _pixels(photo: Image.Image) -> torch.Tensor:
    resized = photo.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1
