"""Perturbations of streams, and how they move. Gan et al. 2020 (VILLA), https://arxiv.org/abs/2006.06195, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.batch import Batch, Stream


class Perturbations:
    """What is added to the streams of one batch, views included: one tensor per stream, made when it is first added."""

    def __init__(self, model: nn.Module, spec: Adversarial) -> None:
        self.model, self.spec = model, spec
        self._of: dict[int, tuple[Stream, Tensor]] = {}  # id of a stream -> the stream, what is added to it

    @property
    def deltas(self) -> list[Tensor]:
        """All perturbations, each of the shape of what it is added to, such as (B, L, D)."""
        return [delta for _, delta in self._of.values()]

    @contextmanager
    def added(self, batch: Batch, name: str) -> Iterator[Batch]:
        """Context manager that yields the batch in which stream `name` is perturbed, in each view that has its own.

        Features are replaced; to a text, the model's `TextEmbed` adds it within this context. Raises ValueError if the batch
        has no such stream, or no `TextEmbed` of the model reads its ids.
        """
        streams = {id(s): s for s in _all(batch, name)}
        if not streams:
            raise ValueError(
                f"adversarial: this batch has no stream {name!r}; it has {', '.join(batch.streams)}"
            )
        if all(stream.data.is_floating_point() for stream in streams.values()):
            changed = {key: replace(s, data=s.data + self._delta(s, s.data)) for key, s in streams.items()}
            yield batch.map_streams(lambda _, stream: changed.get(id(stream), stream))
            return
        embeds = [module.words for module in self.model.modules() if isinstance(module, TextEmbed)]
        used: list[Stream] = []

        def add(module: nn.Module, args: Any, embedded: Tensor) -> Tensor | None:
            stream = next((one for one in streams.values() if one.data is args[0]), None)
            if stream is None:
                return None
            used.append(stream)
            return embedded + self._delta(stream, embedded)

        hooks = [embed.register_forward_hook(add) for embed in embeds]
        try:
            yield batch
        finally:
            for hook in hooks:
                hook.remove()
        if not used:
            raise ValueError(
                f"adversarial: no word embedding of {type(self.model).__name__} reads the ids of stream {name!r}"
            )

    @torch.no_grad()
    def ascend(self) -> None:
        """Moves each perturbation along its gradient, which is then cleared; one without gradient stays."""
        for delta in self.deltas:
            if delta.grad is None:
                continue
            length = _norm(delta.grad)
            delta += self.spec.lr * delta.grad / length.where(length > 0, 1.0)
            if self.spec.radius is not None:
                delta *= (self.spec.radius / _norm(delta).clamp(min=1e-30)).clamp(max=1)
            delta.grad = None

    def _delta(self, stream: Stream, like: Tensor) -> Tensor:
        if id(stream) not in self._of:
            delta = torch.zeros(like.shape, device=like.device)
            if self.spec.start:
                seen = torch.ones_like(delta)
                if stream.mask is not None:
                    seen = seen * stream.mask[..., None]
                drawn = torch.empty_like(delta).uniform_(-self.spec.start, self.spec.start)
                delta = drawn * seen / _norm(seen)  # the norm of ones is the square root of their number
            self._of[id(stream)] = stream, delta.requires_grad_()
        return self._of[id(stream)][1].to(like.dtype)


def _all(batch: Batch, name: str) -> Iterator[Stream]:
    """Yields the streams of that name, of the batch and of its views."""
    every: list[Mapping[str, Stream]] = [batch.streams, *batch.views.values()]
    for streams in every:
        if name in streams:
            yield streams[name]


def _norm(values: Tensor) -> Tensor:
    """Returns the L2 norm of each sample, (B, 1, ...), of as many dimensions as `values`."""
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)
