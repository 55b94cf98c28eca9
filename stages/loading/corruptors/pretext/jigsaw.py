"""Jigsaw puzzles: the tiles of a picture in one of a set of orders.

Noroozi & Favaro 2016, https://arxiv.org/abs/1603.09246.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import Pixels, pixels_of, window
from vlpipe.stages.loading.makers.base import TARGET, Maker, Sample

Orders = npt.NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class Jigsaw:
    """Makes a picture (3, H, W) tiles (grid x grid, 3, tile, tile) in a random order; target["drawn"] (B,) says which.

    A tile is at a random place of its cell of the grid, so that edges do not tell neighbours. num_orders: see `orders`.
    colour_jitter: pixels by which each colour of a tile is moved at most, against chromatic aberration (section 3.3: 2).
    Raises ValueError if a tile is larger than a cell.
    """

    tile: int
    grid: Annotated[int, Field(ge=2, le=3)] = 3
    num_orders: Annotated[int, Field(ge=2)] = 1000
    colour_jitter: Annotated[int, Field(ge=0)] = 0
    stream: str = "image"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        known = orders(self.grid**2, self.num_orders)
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            draw = rng(k)
            which = int(draw.integers(len(known)))
            tiles = self._tiles(pixels_of(item, "jigsaw"), draw)
            sample[self.stream] = {**item, "data": tiles[known[which]], f"{TARGET}drawn": np.int64(which)}
        return samples

    def _tiles(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        height, width = (side // self.grid for side in pixels.shape[1:])
        if self.tile > min(height, width):
            raise ValueError(f"jigsaw: cells have {height} x {width} pixels, fewer than tile {self.tile}")
        found = []
        for cell in range(self.grid**2):
            top = cell // self.grid * height + int(rng.integers(height - self.tile + 1))
            left = cell % self.grid * width + int(rng.integers(width - self.tile + 1))
            if self.colour_jitter:
                by = rng.integers(-self.colour_jitter, self.colour_jitter + 1, size=(3, 2))
                colours = [
                    window(pixels, top + int(dy), left + int(dx), self.tile)[c]
                    for c, (dy, dx) in enumerate(by)
                ]
                found.append(np.stack(colours))
            else:
                found.append(window(pixels, top, left, self.tile))
        return np.stack(found)


@lru_cache(maxsize=4)
def orders(num_tiles: int, num: int) -> Orders:
    """Returns `num` orders (num, num_tiles) that are far apart: algorithm 1 of the paper, which maximises Hamming distances.

    The first is drawn with a fixed seed, each next one is the order whose mean distance to those before is the largest, the
    first of several. Raises ValueError if there are fewer orders.
    """
    every = _permutations(num_tiles)
    if num > len(every):
        raise ValueError(f"jigsaw: {num_tiles} tiles have {len(every)} orders, fewer than num_orders {num}")
    columns = np.ascontiguousarray(every.T)
    distance, chosen = np.zeros(len(every), np.int32), np.zeros(num, np.int64)
    best = int(np.random.default_rng(0).integers(len(every)))
    for k in range(num):
        chosen[k] = best
        distance += (columns != columns[:, best, None]).sum(0, dtype=np.int8)
        distance[best] = np.iinfo(np.int32).min // 2  # not again
        best = int(distance.argmax())
    return every[chosen]


def _permutations(num: int) -> Orders:
    """Returns all orders (num!, num) of the numbers below `num`: each number is put at each place among those before it."""
    found = np.zeros((1, 1), np.int8)
    for new in range(1, num):
        column = np.full((len(found), 1), new, np.int8)
        parts = [np.hstack([found[:, :place], column, found[:, place:]]) for place in range(new + 1)]
        found = np.concatenate(parts)
    return found
