"""The pixels of a sample, and the cutting of patches from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def pixels_of(item: dict[str, Any], who: str) -> Pixels:
    """Returns the pixels (3, H, W) of an item. Raises ValueError, naming `who`, if it has patches or encoded bytes."""
    data: Pixels = item["data"]
    if data.ndim != 3:
        raise ValueError(f"{who} needs a decoded picture (3, H, W), got an array of shape {data.shape}")
    return data


def window(pixels: Pixels, top: int, left: int, size: int) -> Pixels:
    """Returns (3, size, size) from (top, left), moved into the picture where it would leave it."""
    top = min(max(top, 0), pixels.shape[1] - size)
    left = min(max(left, 0), pixels.shape[2] - size)
    return pixels[:, top : top + size, left : left + size]
