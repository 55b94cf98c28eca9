"""What a judge needs of a model with two encoders, whatever library its folder is of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlpipe.stages.common.batches import Pixels

if TYPE_CHECKING:
    import torch
    from PIL import Image

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a model.

    prepare: RGB image -> pixels (3, S, S). images: (B, 3, S, S) -> vectors (B, E) in main memory. texts: texts, batch size
    -> the vector (E,) of each. Vectors have any norm. side: S in pixels. scale, bias: of a model trained with a sigmoid
    loss, whose probability is sigmoid(scale x cosine + bias); bias is None for other models.
    """

    prepare: Callable[[Image.Image], Pixels]
    images: Callable[[torch.Tensor], torch.Tensor]
    texts: Callable[[Iterable[str], int], Iterator[Vectors]]
    side: int
    scale: float = 1.0
    bias: float | None = None


def cosine(a: Vectors, b: Vectors) -> float:
    """Cosine in float64, so that the result does not depend on a row's position in its batch."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(a64 @ b64 / (np.linalg.norm(a64) * np.linalg.norm(b64)))


def probability(similarity: float, scale: float, bias: float) -> float:
    """Returns sigmoid(scale x cosine + bias), SigLIP's probability that image and text belong together."""
    return float(1.0 / (1.0 + np.exp(-(scale * similarity + bias))))
