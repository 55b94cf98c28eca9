"""A first-in-first-out queue of embeddings of earlier batches, as further candidates of a contrastive loss (MoCo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

F = TypeVar("F")


def _not_compiled(function: F) -> F:
    """Decorator: torch.compile calls the function as it is; traced, it would be compiled anew for each count of rows."""
    return cast(F, torch.compiler.disable(function))


class Queue(nn.Module):
    """The last `size` rows of embeddings (E,), one buffer per name, and an id (int64) of each row.

    Its contents are buffers, so checkpoints hold them. `rows` are equal on all ranks if all ranks push the same rows.
    """

    num_pushed: Tensor
    ids: Tensor

    def __init__(self, size: int, width: int, names: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self.size, self.names = size, tuple(names)
        self._num_pushed: int | None = 0  # `num_pushed`, without a wait for the device; None: not read yet
        for name in names:
            self.register_buffer(name, torch.zeros(size, width, device=device))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.long, device=device))
        self.register_buffer("num_pushed", torch.zeros((), dtype=torch.long, device=device))
        self.register_load_state_dict_post_hook(Queue._forget_count)

    def _forget_count(self, _: object) -> None:
        self._num_pushed = None

    def _count(self) -> int:
        if self._num_pushed is None:
            self._num_pushed = int(self.num_pushed)
        return self._num_pushed

    @_not_compiled
    def rows(self) -> tuple[list[Tensor], Tensor]:
        """Returns the filled part of each buffer, (K, E) each in the order of `names`, and its ids (K,)."""
        filled = min(self._count(), self.size)
        return [self.get_buffer(name)[:filled] for name in self.names], self.ids[:filled]

    @_not_compiled
    @torch.no_grad()
    def push(self, rows: Sequence[Tensor], ids: Tensor) -> None:
        """Adds rows (N, E), one tensor per name; the oldest make room. Of more than `size` rows, the last stay."""
        total = self._count() + len(ids)
        num_new = min(len(ids), self.size)
        if num_new == 0:
            return
        at = torch.arange(total - num_new, total, device=ids.device) % self.size
        for name, new in zip((*self.names, "ids"), (*rows, ids), strict=True):
            buffer = self.get_buffer(name)
            buffer[at] = new[-num_new:].to(buffer.dtype)
        self.num_pushed.fill_(total)
        self._num_pushed = total
