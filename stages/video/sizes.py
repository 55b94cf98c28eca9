"""How large a frame comes out: the shown picture (turned upright, square pixels) is scaled, and for a square cropped.

Scaling is done by the decoder's own scaler, before the frame is turned: so a target is worked out in the stored orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Square:
    """The shorter side is scaled to `side` px, then the middle is cut out: (side, side, 3)."""

    side: int


@dataclass(frozen=True, slots=True)
class ShortSide:
    """The shorter side is scaled to `px`, the longer one in proportion."""

    px: int


@dataclass(frozen=True, slots=True)
class Exact:
    """Scaled to this size whatever the aspect: (height, width, 3)."""

    width: int
    height: int


Size: TypeAlias = Square | ShortSide | Exact


@dataclass(frozen=True, slots=True)
class Fit:
    """What is done to a stored frame: scale to (width, height), turn counter-clockwise, cut out (top, left, side)."""

    width: int
    height: int
    quarter_turns: int
    crop: tuple[int, int, int] | None

    def finish(self, scaled: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """(height, width, 3) as stored -> the picture as shown."""
        turned = np.rot90(scaled, self.quarter_turns)
        if self.crop is not None:
            top, left, side = self.crop
            turned = turned[top : top + side, left : left + side]
        return np.ascontiguousarray(turned)


def shown_size(width: int, height: int, sar: float, rotation: int) -> tuple[int, int]:
    """Width and height as a player shows them. sar: width of a stored pixel over its height; rotation: degrees."""
    wide = max(1, round(width * sar))
    return (height, wide) if quarter_turns(rotation) % 2 else (wide, height)


def quarter_turns(rotation: int) -> int:
    """Counter-clockwise, 0 to 3. Degrees between quarters (nobody writes them) go to the nearest."""
    return round(rotation / 90) % 4


def fit(size: Size, width: int, height: int, sar: float, rotation: int) -> Fit:
    """How a stored frame of (width, height) becomes a picture of `size`."""
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
