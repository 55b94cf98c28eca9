"""A model whose feature of an image is its mean colour, labelled rows of plain images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.pipeline.shard import heavy


class MeanColour(Model):
    STREAMS = {"image": "image:Image"}  # noqa: RUF012

    def __init__(self, *, image_size: int = 8) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def image_feat(self, out: Outputs) -> Tensor:
        return torch.nn.functional.normalize(out.colour, dim=-1)

    def colour(self, out: Outputs) -> Tensor:
        return self.scale * out.stream("image").data.mean((2, 3))

    def maps(self, out: Outputs) -> Tensor:
        return self.scale * out.stream("image").data

    def count(self, out: Outputs) -> int:
        return len(out)


def plain(colour: Sequence[int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(colour)).save(file, "PNG")
    return file.getvalue()


def colours(num: int, seed: int, spread: int = 60) -> tuple[list[bytes], list[int]]:
    """Reddish, greenish and bluish images with labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num).tolist()
    images = [plain((rng.integers(0, 120, 3) + spread * np.eye(3, dtype=int)[k]).tolist()) for k in labels]
    return images, labels


def labelled_rows(images: Sequence[bytes], labels: Sequence[int | None], prefix: str = "row") -> pa.Table:
    schema = pa.schema([("id", pa.string()), ("label", pa.int32()), heavy("image", pa.binary())])
    ids = [f"{prefix}{k}" for k in range(len(images))]
    return pa.table([ids, pa.array(labels, pa.int32()), list(images)], schema=schema)
