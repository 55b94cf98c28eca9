"""The control of tasks about how regions hang together: tiles that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import Pixels, pixels_of
from vlpipe.stages.loading.makers.base import Maker, Sample


@dataclass(frozen=True, kw_only=True)
class ShuffleTiles:
    """Cuts each picture into grid x grid tiles and exchanges them.

    among: "places", the tiles of a picture change places, so that none tells where another one belongs; "pictures", each
    tile keeps its place and goes to another sample of the micro-batch, so that none tells what another one holds. Which
    of the two takes a task away depends on the task. Raises ValueError if the side is no multiple of `grid`.
    """

    grid: Annotated[int, Field(ge=2)] = 3
    among: Literal["places", "pictures"] = "places"
    stream: str = "image"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        items: list[dict[str, Any]] = [sample[self.stream] for sample in samples]
        cut = [self._tiles(pixels_of(item, "shuffle_tiles")) for item in items]
        num = self.grid**2
        if self.among == "places":
            mixed = [tiles[rng(k).permutation(num)] for k, tiles in enumerate(cut)]
        else:
            mixed, draw = [tiles.copy() for tiles in cut], rng(0)
            for place in range(num):
                for k, source in enumerate(draw.permutation(len(cut))):
                    mixed[k][place] = cut[source][place]
        for sample, item, tiles in zip(samples, items, mixed, strict=True):
            sample[self.stream] = {**item, "data": self._joined(tiles)}
        return samples

    def _tiles(self, pixels: Pixels) -> Pixels:
        """(3, H, W) -> (grid x grid, 3, H / grid, W / grid), row by row."""
        _, height, width = pixels.shape
        if height % self.grid or width % self.grid:
            raise ValueError(f"shuffle_tiles: {height} x {width} pixels cannot be cut into {self.grid} rows")
        cells = pixels.reshape(3, self.grid, height // self.grid, self.grid, width // self.grid)
        return cells.transpose(1, 3, 0, 2, 4).reshape(self.grid**2, 3, *cells.shape[2::2])

    def _joined(self, tiles: Pixels) -> Pixels:
        _, _, height, width = tiles.shape
        cells = tiles.reshape(self.grid, self.grid, 3, height, width).transpose(2, 0, 3, 1, 4)
        return np.ascontiguousarray(cells).reshape(3, self.grid * height, self.grid * width)
