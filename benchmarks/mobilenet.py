"""MobileNetV2 embeddings of photos, for benchmarks.

Needs a folder with `dequantised_fp16.npz` (Keras's weights, batch norm folded in), as VLPIPE_DATA/mobilenetv2 is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from vlpipe.models.folder import load

SIZE, DIM, BATCH = 224, 1280, 32


class MobileNet:
    """`embed(photos)`: the mean of the last feature map, (N, 1280), unit norm."""

    def __init__(self, folder: Path) -> None:
        model = load(folder / "dequantised_fp16.npz", use="mobilenet_v2:MobileNetV2")
        self.backbone = model.backbone.eval()

    def embed(self, photos: Iterable[Image.Image]) -> npt.NDArray[np.float32]:
        found = [np.zeros((0, DIM), np.float32)]
        for batch in _batches(photos):
            with torch.inference_mode():
                pixels = (batch - self.backbone.shift) / self.backbone.scale  # as CLIP normalises them
                found.append(F.normalize(self.backbone(pixels).mean(dim=(2, 3)), dim=1).numpy())
        return np.concatenate(found)


def _batches(photos: Iterable[Image.Image]) -> Iterator[torch.Tensor]:
    photos = iter(photos)
    while batch := list(islice(photos, BATCH)):
        yield torch.stack([_values(photo) for photo in batch])


def _values(photo: Image.Image) -> torch.Tensor:
    """Values from -1 to 1, after a bilinear resize."""
    resized = photo.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1
