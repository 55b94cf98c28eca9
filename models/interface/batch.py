"""A training batch: named streams, and views that replace some of them with corrupted versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IGNORE = -100  # target id of positions that no loss counts; cross_entropy's default


@dataclass(frozen=True, slots=True)
class Stream:
    """One modality of B samples, right-padded to L.

    data: token ids (B, L), vectors (B, L, D), pixels (B, C, H, W), frames (B, T, C, H, W) or labels (B,).
    mask: (B, L) bool, True for real positions; None if there is no padding.
    extra: further inputs, such as `box` (B, L, 4), `time` (B, L, 2), `segment` (B, L), `keep` (B, K) patch indices.
    target: what a corruptor recorded for losses, such as `ids` (B, L) with IGNORE, `masked` (B, L), `match` (B,).
    places: flat indices (M,) in (B, L) of the positions that losses choose, by the name of what chooses them; the loader
    computes them, so that no step waits for a GPU to count them. See `chosen`.
    """

    data: Tensor
    mask: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    target: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """Returns the stream with `change` applied to each of its tensors."""
        return Stream(
            change(self.data),
            None if self.mask is None else change(self.mask),
            {name: change(value) for name, value in self.extra.items()},
            {name: change(value) for name, value in self.target.items()},
            {name: change(value) for name, value in self.places.items()},
        )

    def chosen(self, name: str, counted: Tensor) -> Tensor:
        """Returns the flat indices (M,) of the positions that are True in `counted` (B, L): `places[name]`, if known."""
        return self.places[name] if name in self.places else flat_places(counted)

    def rows(self, index: Tensor | slice) -> Stream:
        """Returns samples `index`, (N,) or a slice, of the stream."""
        return replace(self, places={}).map(lambda value: value[index])

    def __len__(self) -> int:
        return len(self.data)


def flat_places(counted: Tensor) -> Tensor:
    """Returns the flat indices (M,) of the True values of a tensor; on a GPU, waits for it."""
    return counted.flatten().nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class Step:
    """Where in the run a batch is: optimiser step, micro-batch within it, and epochs completed before it."""

    number: int = 0
    micro: int = 0
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples of named streams.

    views: view name -> streams that replace those of the batch. same: (B,) int64, equal for rows of the same picture.
    task: the name of the task this batch is for, "" if the recipe has no tasks.
    """

    streams: Mapping[str, Stream]
    same: Tensor
    views: Mapping[str, Mapping[str, Stream]] = field(default_factory=dict)
    step: Step = field(default_factory=Step)
    task: str = ""

    def __len__(self) -> int:
        return len(self.same)

    def stream(self, name: str) -> Stream:
        """Returns stream `name`. Raises ValueError if there is none."""
        if name not in self.streams:
            have = ", ".join(self.streams)
            raise ValueError(f"this batch has no stream {name!r}; its streams: {have}")
        return self.streams[name]

    def view(self, name: str) -> Batch:
        """Returns the batch with the streams of view `name`; "" is the batch itself. Raises ValueError if there is none."""
        if not name:
            return self
        if name not in self.views:
            have = ", ".join(self.views) or "none"
            raise ValueError(f"this batch has no view {name!r}; its views: {have}")
        return replace(self, streams={**self.streams, **self.views[name]})

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with `change` applied to each tensor; a stream that several views share is changed once."""
        found = self.map_streams(lambda _, stream: stream.map(change))
        return replace(found, same=change(self.same))

    def map_streams(self, change: Callable[[str, Stream], Stream]) -> Batch:
        """Returns the batch with `change` applied to each (name, stream), views included, once each."""
        changed: dict[int, Stream] = {}

        def of(streams: Mapping[str, Stream]) -> dict[str, Stream]:
            for name, stream in streams.items():
                if id(stream) not in changed:
                    changed[id(stream)] = change(name, stream)
            return {name: changed[id(stream)] for name, stream in streams.items()}

        views = {view: of(streams) for view, streams in self.views.items()}
        return replace(self, streams=of(self.streams), views=views)

    def rows(self, index: Tensor | slice) -> Batch:
        """Returns samples `index`, (N,) or a slice, of the batch."""
        found = self.map_streams(lambda _, stream: stream.rows(index))
        return replace(found, same=self.same[index])

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`; copies from pinned memory are asynchronous."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch in pinned memory. torch's DataLoader calls this."""
        return self.map(lambda value: value.pin_memory())
