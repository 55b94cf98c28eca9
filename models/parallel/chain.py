"""A model's layers as a chain, of which one process has a part: what a stage of a pipeline computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Reached(Exception):
    """Ends a forward pass after the last layer that this process has; `x` is what that layer returned."""

    def __init__(self, x: Tensor) -> None:
        super().__init__("the last layer of this process is reached")
        self.x = x


class Chain:
    """Leaves a part of a model's chain of layers in this process, in place.

    The layers are those of the lists that the model names in `CHAIN`. Layers of other parts keep their parameters' names,
    shapes and groups, without memory (on the meta device), and pass on what they get; what is not in the chain stays in all
    parts. part: which of `num` consecutive parts, of about as many layers each. A layer's first argument goes through the
    chain, (B, ...), and the layer returns a tensor of the same shape and type.
    """

    def __init__(self, model: Any, part: int, num: int) -> None:
        self.names, self.layers = zip(*chained(model), strict=True)
        self.bounds = [i * len(self.layers) // num for i in range(num + 1)]
        self.part, self.num = part, num
        start, stop = self.bounds[part], self.bounds[part + 1]
        self._given: Tensor | None = None
        self._seen: dict[int, Tensor] | None = None  # in a probe: what reaches each layer
        self._passes = 0
        for i, layer in enumerate(self.layers):
            if start <= i < stop:
                layer.forward = partial(self._own, i, layer.forward)
            else:
                layer.to("meta")
                layer.forward = partial(self._other, i)
        if not self.is_last:
            self.layers[stop - 1].register_forward_hook(self._leave)

    @property
    def is_first(self) -> bool:
        return self.part == 0

    @property
    def is_last(self) -> bool:
        return self.part == self.num - 1

    def own(self) -> list[nn.Parameter]:
        """Returns the parameters of the layers of this part."""
        layers = self.layers[self.bounds[self.part] : self.bounds[self.part + 1]]
        return [p for layer in layers for p in layer.parameters()]

    def part_of(self, name: str) -> int | None:
        """Returns the part that has a parameter or buffer of the model; None for what all parts have."""
        for i, (start, stop) in enumerate(pairwise(self.bounds)):
            if any(name.startswith(f"{layer}.") for layer in self.names[start:stop]):
                return i
        return None

    def run(self, forward: Callable[[], Any], given: Tensor | None = None) -> Any:
        """Returns what `forward`, a pass of the model, returns, or what this part's last layer does, if it is not the last
        part. given: what the part before returned; None for the first one.

        Raises ValueError if the pass goes through the chain twice.
        """
        self._given, self._passes = given, 0
        try:
            return forward()
        except Reached as reached:
            return reached.x
        finally:
            self._given = None

    @torch.no_grad()
    def probe(self, forward: Callable[[], Any]) -> tuple[Tensor | None, Tensor]:
        """Returns what this part gets and what its last layer returns, in shape and type, without running a layer.

        None for the first part, which gets nothing.
        """
        start, stop = self.bounds[self.part], self.bounds[self.part + 1]
        devices = {p.device.index for p in self.own() if p.device.type == "cuda"}
        seen: dict[int, Tensor] = {}
        self._seen = seen
        try:
            with torch.random.fork_rng(devices=sorted(devices)):
                forward()
        except Reached:
            pass
        finally:
            self._seen = None
        return seen.get(start - 1), seen[stop - 1]

    def _own(self, at: int, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(x, *args, **kwargs) if self._seen is None else self._probed(at, x)

    def _other(self, at: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._seen is not None:
            return self._probed(at, x)
        if at != self.bounds[self.part] - 1:
            return x
        self._passes += 1
        if self._passes > 1:
            raise ValueError("mesh: pipeline: the model's layers are passed through more than once per step")
        assert self._given is not None
        return self._given

    def _probed(self, at: int, x: Tensor) -> Tensor:
        assert self._seen is not None
        self._seen[at] = x
        if at == self.bounds[self.part + 1] - 1:
            raise Reached(x)
        return x

    def _leave(self, layer: nn.Module, args: Any, x: Tensor) -> None:
        raise Reached(x)


def chained(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, layer) of the lists in a model's `CHAIN`, in their order."""
    for name in model.CHAIN:
        for i, layer in enumerate(model.get_submodule(name)):
            yield f"{name}.{i}", layer


def chain_problem(model: Any, num: int) -> str | None:
    """Returns why the layers of a model cannot be `num` parts of a chain; None if they can."""
    if not model.CHAIN:
        return (
            f"mesh: pipeline: {type(model).__name__} is no single chain of layers, so what one part would pass to the next "
            "is not one tensor; remove `pipeline`, or use shard or tensor"
        )
    found = len(list(chained(model)))
    return None if found >= num else f"mesh: pipeline: {num} workers, but the model has {found} layer(s)"
