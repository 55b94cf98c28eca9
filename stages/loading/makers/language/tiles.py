"""A picture of any shape as tiles: the whole of it, and its parts at a higher resolution (LLaVA-NeXT).

https://llava-vl.github.io/blog/2024-01-30-llava-next/; the arithmetic is that of transformers' LlavaNextImageProcessor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.common.pixels import decode, square
from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from PIL import Image as Pictures

NONE, NEWLINE, FEATURES = (
    0,
    1,
    2,
)  # what `order` has: nothing, the end of a line, from FEATURES on the number of a feature


@dataclass(frozen=True, kw_only=True)
class Tiles(Image):
    """Tiles (B, T, 3, size, size) with a mask (B, T): the whole picture, resized to a square, then its tiles row by row,
    after it was resized to fit the grid and padded to its middle.

    grids: (rows, columns) of tiles; that one is taken which keeps most of the picture's pixels, then that which wastes
    least. patch_size: of the model. extra["order"] (B, P): the features of an image as the language model reads them:
    those of the whole, then those of the tiles as one picture, line by line, without those of padding alone. 0: none, 1:
    the end of a line, 2 + k: feature k of the tiles, counted on from tile to tile.
    """

    PADDED: ClassVar[bool] = True

    patch_size: int
    grids: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.augment is not None:
            raise ValueError("streams.image: tiles are of whole pictures; leave out `augment`")
        if not self.grids or any(side < 1 for grid in self.grids for side in grid):
            raise ValueError(f"streams.image: grids must be pairs of rows and columns, got {self.grids}")

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        image = row.columns["image"]
        if isinstance(image, bytes):
            try:
                image = decode(image)
            except RowFault as fault:
                raise VlpipeError(
                    f"training: the image of row {row.id} cannot be decoded ({fault}); add a step before training that "
                    "rejects such rows"
                ) from fault
        grid = best_grid(image.height, image.width, self.grids, self.size)
        return {
            "data": tiles(image, grid, self.size),
            f"{EXTRA}order": order(image.height, image.width, grid, self.size // self.patch_size),
        }


def best_grid(height: int, width: int, grids: Sequence[tuple[int, int]], size: int) -> tuple[int, int]:
    """Returns the grid that keeps most pixels of the picture, at most all; of equals that with the fewest pixels over."""

    def kept(grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = grid[0] * size, grid[1] * size
        scale = min(columns / width, rows / height)
        most = min(int(width * scale) * int(height * scale), width * height)
        return most, most - rows * columns

    return max(grids, key=kept)


def tiles(image: Pictures.Image, grid: tuple[int, int], size: int) -> npt.NDArray[np.uint8]:
    """Returns (1 + rows x columns, 3, size, size): the whole picture, then its tiles."""
    from PIL import Image as Pil

    height, width = grid[0] * size, grid[1] * size
    if width / image.width < height / image.height:
        new = width, min(math.ceil(image.height * width / image.width), height)
    else:
        new = min(math.ceil(image.width * height / image.height), width), height
    canvas = Pil.new("RGB", (width, height))
    canvas.paste(image.resize(new, Pil.Resampling.BICUBIC), ((width - new[0]) // 2, (height - new[1]) // 2))
    parts = np.asarray(canvas).reshape(grid[0], size, grid[1], size, 3).swapaxes(1, 2)
    every = [square(image, size)[None], parts.reshape(-1, size, size, 3)]
    return np.ascontiguousarray(np.concatenate(every).transpose(0, 3, 1, 2))


def order(height: int, width: int, grid: tuple[int, int], side: int) -> npt.NDArray[np.int64]:
    """Returns the features in the order in which they are read; see `Tiles`. side: patches per side of a tile."""
    whole, num = np.arange(side * side), side * side
    of_tiles = np.arange(num, num * (1 + grid[0] * grid[1])).reshape(*grid, side, side)
    lines = of_tiles.swapaxes(1, 2).reshape(grid[0] * side, grid[1] * side)
    if width / height > lines.shape[1] / lines.shape[0]:
        cut = (lines.shape[0] - int(round(height * lines.shape[1] / width, 7))) // 2
        lines = lines[cut : len(lines) - cut]
    else:
        cut = (lines.shape[1] - int(round(width * lines.shape[0] / height, 7))) // 2
        lines = lines[:, cut : lines.shape[1] - cut]
    ends = np.full((len(lines), 1), NEWLINE - FEATURES)
    return np.concatenate([whole, np.concatenate([lines, ends], 1).ravel()]) + FEATURES
