"""DALL-E's layers: causal attention in which a place of the image sees all of the text and some of the places before it.

Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, appendix B.1 and figure 11; after Child et al. 2019,
https://arxiv.org/abs/1904.10509.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.decoder import DecoderLayer

ROW, COLUMN, CONVOLUTION, DENSE = "row", "column", "convolution", "dense"


def pattern_of(layer: int, num_layers: int) -> str:
    """Returns the pattern of layer i, from 1: column where (i - 2) mod 4 = 0, else row; the last is a convolution."""
    if layer == num_layers:
        return CONVOLUTION
    return COLUMN if (layer - 2) % 4 == 0 else ROW


def sees(pattern: str, num_text: int, grid: int, kernel: int) -> Tensor:
    """Returns (T + N, T + N) bool, N = grid^2: which positions each one attends to. Texts: all up to itself.

    Row: itself and the `grid` places before it, the last of which is the one above. Column: the places of its column down to
    itself. Convolution: the places of a `kernel` x `kernel` window around it up to itself; like a row it wraps around the
    edge. Dense: all places up to itself.
    """
    num = num_text + grid * grid
    at = torch.arange(num)
    before = at[:, None] - at[None]  # how far each key lies before the query
    causal = before >= 0
    if pattern == DENSE:
        return causal
    if pattern == ROW:
        near = before <= grid
    elif pattern == COLUMN:
        near = before % grid == 0
    else:
        half = kernel // 2
        rows = torch.arange(half + 1)[:, None, None] * grid  # those of the window: its own and `half` above
        near = ((before - rows).abs() <= half).any(0)
    is_text = at < num_text
    return causal & (near | is_text[None] | is_text[:, None])


class SparseLayer(DecoderLayer):
    """As `DecoderLayer`, whose steps with a cache also attend to what a pattern allows alone."""

    def step_of(self, x: Tensor, cache: Cache, at: int, rows: Tensor) -> Tensor:
        """(B, T, D): the next T positions. rows: (T, positions) bool, what they attend to. Adds them to the cache."""
        q, k, v = self._qkv(x)
        keys, values, _ = cache.put(at, k, v)
        return self._rest(x + self.out(attend(q, keys, values, rows[:, : keys.shape[2]])), None)
