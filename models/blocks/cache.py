"""Keys and values of texts that are written token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Cache:
    """Keys and values of B texts of at most `room` tokens, (B, H, room, D / H) per layer, allocated at the first token.

    length: tokens so far. at: after `fix`, the same number as a tensor (1,) on the device; each further step then takes
    one token, and all of its tensors have the same shapes, so that it can be compiled or captured. image: keys and
    values of the images, which no step changes; or, in their place, `context`: the image tokens (images, N, Dv)
    themselves (see `CrossAttention.of_context`).
    """

    room: int
    length: int = 0
    own: list[KeysValues] = field(default_factory=list)
    image: list[KeysValues] = field(default_factory=list)
    context: Tensor | None = None
    at: Tensor | None = None

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the next T keys and values (B, H, T, D / H) of a layer.

        Returns all keys and values, and a mask (T, keys), True for the keys that a token attends to.
        """
        if len(self.own) == layer:
            shape = (*k.shape[:2], self.room, k.shape[3])
            self.own.append((k.new_zeros(shape), v.new_zeros(shape)))
        keys, values = self.own[layer]
        if self.at is not None:
            keys.index_copy_(2, self.at, k)
            values.index_copy_(2, self.at, v)
            return keys, values, (torch.arange(self.room, device=k.device) <= self.at)[None]
        end = self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        causal = torch.ones(k.shape[2], end, dtype=torch.bool, device=k.device).tril(self.length)
        return keys[:, :, :end], values[:, :, :end], causal

    def positions(self, table: Tensor, num: int) -> Tensor:
        """Returns the embeddings (num, D) of the next `num` positions. table: (positions, D)."""
        if self.at is not None:
            return table.index_select(0, self.at)
        return table[self.length : self.length + num]

    def advance(self, num: int) -> None:
        """Counts `num` tokens that all layers have put."""
        if self.at is not None:
            self.at.add_(num)
        else:
            self.length += num

    def fix(self) -> None:
        """From now on each step has one token and the same shapes. Call it after the first step."""
        self.at = torch.tensor([self.length], device=self.own[0][0].device)

    def select(self, rows: Tensor) -> None:
        """Continues with `rows` of the batch (beam search); rows of one image must stay rows of it."""
        self.own = [(k[rows], v[rows]) for k, v in self.own]

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, in one order."""
        pairs = [*self.own, *self.image]
        return [t for pair in pairs for t in pair] + [t for t in (self.context, self.at) if t is not None]

    def copy_(self, other: Cache) -> None:
        """Takes over the content of a cache of the same shapes, without new memory. Raises ValueError for other shapes."""
        shapes = [[t.shape for t in cache.tensors()] for cache in (self, other)]
        if shapes[0] != shapes[1]:
            raise ValueError("a cache that is kept for compiled steps got a batch of another shape")
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)


@dataclass
class SourceCache(Cache):
    """As `Cache`, of texts that continue a source, whose keys and values are `image`.

    seen: (B, S) bool, the source's positions that are not padding.
    """

    seen: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *([] if self.seen is None else [self.seen])]
