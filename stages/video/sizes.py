"""Output sizes of frames: the frame as shown (upright, square pixels) is scaled, and cropped if a square is requested.

FFmpeg's scaler runs before the frame is rotated, so target sizes are computed in the stored orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Square:
    """Scales the shorter side to `side` pixels, then crops the centre: (side, side, 3)."""

    side: int


@dataclass(frozen=True, slots=True)
class ShortSide:
    """Scales the shorter side to `px` pixels, keeping the aspect ratio."""

    px: int


@dataclass(frozen=True, slots=True)
class Exact:
    """Scales to this size, ignoring the aspect ratio: (height, width, 3)."""

    width: int
    height: int


Size: TypeAlias = Square | ShortSide | Exact


@dataclass(frozen=True, slots=True)
class Fit:
    """Steps from a stored frame to the output: scale to (width, height), turn counter-clockwise, crop (top, left, side)."""

    width: int
    height: int
    quarter_turns: int
    crop: tuple[int, int, int] | None

    def finish(self, scaled: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Rotates and crops a scaled frame: (height, width, 3) as stored -> as shown."""
        turned = np.rot90(scaled, self.quarter_turns)
        if self.crop is not None:
            top, left, side = self.crop
            turned = turned[top : top + side, left : left + side]
        return np.ascontiguousarray(turned)


def shown_size(width: int, height: int, sar: float, rotation: int) -> tuple[int, int]:
    """Returns (width, height) in pixels as shown. sar: width of a stored pixel over its height; rotation: in degrees."""
    wide = max(1, round(width * sar))
    return (height, wide) if quarter_turns(rotation) % 2 else (wide, height)


def quarter_turns(rotation: int) -> int:
    """Returns the number of counter-clockwise quarter turns, 0 to 3; other angles (rare) are rounded to the nearest."""
    return round(rotation / 90) % 4


def fit(size: Size, width: int, height: int, sar: float, rotation: int) -> Fit:
    """Returns the steps from a stored frame of (width, height) to the output `size`."""
    turns = quarter_turns(rotation)
    shown = shown_size(width, height, sar, rotation)
    crop = None
    if isinstance(size, Exact):
        wide, high = size.width, size.height
    else:
        short = size.side if isinstance(size, Square) else size.px
        wide, high = (max(short, round(side * short / min(shown))) for side in shown)
        if isinstance(size, Square):
            crop = ((high - short) // 2, (wide - short) // 2, short)
    return Fit(*((high, wide) if turns % 2 else (wide, high)), turns, crop)
