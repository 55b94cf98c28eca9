"""Pipeline parallelism: each worker has some of a model's layers, and micro-batches pass through them one after the other.

By torch's `distributed.pipelining`, with one forward and one backward pass at a time (1F1B; Narayanan et al. 2019,
https://arxiv.org/abs/1806.03377, in the form that flushes after each step, https://arxiv.org/abs/2006.09503).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.parallel.chain import Chain, chain_problem

Shape = tuple[torch.Size, torch.dtype]


class Pipeline:
    """Divides a net's model among the workers of a mesh ("pipeline", "data"), in place, and moves the net to a device.

    Embeddings, heads and objectives stay on all workers; their gradients are summed over the pipeline, and all gradients are
    averaged over `data`, the workers with other rows. net: a `Net`, whose model has a `CHAIN`.
    """

    def __init__(self, net: Any, mesh: DeviceMesh, device: torch.device) -> None:
        self.net, self.device = net, device
        self.group, self.rows = mesh["pipeline"].get_group(), mesh["data"].get_group()
        self.chain = Chain(net.model, mesh["pipeline"].get_local_rank(), mesh["pipeline"].size())
        net._apply(lambda value: value if value.is_meta else value.to(device))
        self.own = self.chain.own()
        held = {id(p) for layer in self.chain.layers for p in layer.parameters()}
        self.shared = [p for p in net.parameters() if p.requires_grad and id(p) not in held]
        self._trained: dict[
            str, list[bool]
        ] = {}  # task -> whether a worker has a gradient of each of `shared`
        self._shapes: dict[Any, tuple[Shape | None, Shape]] = {}
        self._last: tuple[Any, Any, _Part] | None = (
            None  # what a schedule was made for, the schedule, its part
        )
        self._names: dict[str, list[str]] = {}

    def run(self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor], precision: Any) -> None:
        """Passes micro-batches, whose losses are added up, forward and backward through all parts.

        loss_of: maps a micro-batch to its part of the loss, by a pass of the net; its value counts on the last worker alone.
        precision: returns a context of forward passes. Raises ValueError if micro-batches differ in shape.
        """
        shapes = self._shapes_of(batches, precision)
        part = self._schedule(len(batches), shapes)
        assert self._last is not None
        schedule = self._last[1]
        part.forward_of = lambda micro, given: self._forward(batches[micro], given, loss_of, shapes[1])
        numbers = torch.arange(len(batches))
        try:
            schedule.step(
                *([numbers] if self.chain.is_first else []),
                micro=numbers,
                target=numbers,
                return_outputs=False,
            )
        finally:
            part.forward_of = None
        self._exchange(batches[0].task)

    def _forward(
        self, batch: Batch, given: Tensor | None, loss_of: Callable[[Batch], Tensor], shape: Shape
    ) -> Tensor:
        found: Tensor = self.chain.run(lambda: loss_of(batch), given)
        if self.chain.is_last:
            return found
        if (found.shape, found.dtype) != shape:
            raise ValueError(
                f"mesh: pipeline: the last layer of part {self.chain.part} returned {tuple(found.shape)} {found.dtype}, "
                f"wanted {tuple(shape[0])} {shape[1]} as it gets; micro-batches of a step and layers keep one shape"
            )
        # of frozen layers there is no gradient to come back, but the workers exchange one
        return found.contiguous() if found.requires_grad else found.detach().requires_grad_()

    def _shapes_of(self, batches: Sequence[Batch], precision: Any) -> tuple[Shape | None, Shape]:
        """Returns shape and type of what this part gets and returns, which its first layers need not compute."""
        key = (batches[0].task, *(_sizes(batch) for batch in batches))
        if len(set(key[1:])) > 1:
            raise ValueError(
                "mesh: pipeline: the micro-batches of a step differ in shape; pad them to one length"
            )
        if key not in self._shapes:
            with precision():
                entry, exit_ = self.chain.probe(lambda: self.net(batches[0]))
            self._shapes[key] = (
                None if entry is None else (entry.shape, entry.dtype),
                (exit_.shape, exit_.dtype),
            )
        return self._shapes[key]

    def _schedule(self, num: int, shapes: tuple[Shape | None, Shape]) -> _Part:
        if self._last is None or self._last[0] != (num, shapes):
            part = _Part()
            entry, exit_ = shapes
            given = torch.zeros(1, dtype=torch.int64) if entry is None else _like(entry)
            returned = torch.zeros((), requires_grad=True) if self.chain.is_last else _like(exit_)
            stage = PipelineStage(
                part, self.chain.part, self.chain.num, self.device, given, returned, group=self.group
            )
            # a part of the loss is a part of the mean over all micro-batches already
            schedule = Schedule1F1B(stage, num, loss_fn=lambda loss, _: loss, scale_grads=False)
            self._last = (num, shapes), schedule, part
        return self._last[2]

    def _exchange(self, task: str) -> None:
        """Sums the gradients of what all parts have, and averages all over workers with other rows."""
        if task not in self._trained:
            has = torch.tensor([float(p.grad is not None) for p in self.shared], device=self.device)
            dist.all_reduce(has, group=self.group)
            self._trained[task] = [bool(num) for num in has.tolist()]
        for p, is_trained in zip(self.shared, self._trained[task], strict=True):
            if is_trained:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad, group=self.group)
        size = dist.get_world_size(self.rows)
        if size > 1:
            for p in [*self.shared, *self.own]:
                if p.grad is not None:
                    dist.all_reduce(p.grad, group=self.rows)
                    p.grad /= size

    def tell(self, values: dict[str, Tensor] | None, task: str) -> dict[str, Tensor]:
        """Returns the values (float64 scalars) that the last worker of the pipeline has; others give None."""
        last = dist.get_global_rank(self.group, self.chain.num - 1)
        if task not in self._names:
            names: list[Any] = [None if values is None else list(values)]
            dist.broadcast_object_list(names, last, group=self.group, device=self.device)
            self._names[task] = names[0]
        told = torch.zeros(len(self._names[task]), dtype=torch.float64, device=self.device)
        if values is not None:
            told = torch.stack([values[name].to(torch.float64) for name in self._names[task]])
        dist.broadcast(told, last, group=self.group)
        return dict(zip(self._names[task], told.unbind(), strict=True))

    def clip_gradients(self, most: float = math.inf) -> Tensor:
        """Clips gradients to an L2 norm of `most` over all parts; returns the norm before, a scalar."""
        own = _squares(self.own, self.device)
        dist.all_reduce(own, group=self.group)
        total = (own + _squares(self.shared, self.device)).sqrt()
        params = [p for p in [*self.shared, *self.own] if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(params, most, total)
        return total

    def gathered(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a `state_dict()` of the model, or of what contains it as `model`, with what other parts have. It is {} on
        all workers but the one that writes for all; all call this together.
        """
        found: dict[str, Tensor] = {}
        for name, value in sorted(state.items()):  # the same order on all workers
            part = self.chain.part_of(name.removeprefix("model."))
            value = torch.empty_like(value, device=self.device) if value.is_meta else value.detach()
            if part is not None:
                dist.broadcast(value, dist.get_global_rank(self.group, part), group=self.group)
            if dist.get_rank() == 0:
                found[name] = value.cpu()
        return found


class _Part(nn.Module):
    """What torch's pipeline runs as a module: `forward_of(number of the micro-batch, what the part before returned)`."""

    forward_of: Callable[[int, Tensor | None], Tensor] | None = None

    def forward(self, given: Tensor, micro: Tensor) -> Tensor:
        assert self.forward_of is not None
        return self.forward_of(int(micro), given if given.is_floating_point() else None)


def _like(shape: Shape) -> Tensor:
    return torch.empty(shape[0], dtype=shape[1], device="meta", requires_grad=True)


def _squares(params: Collection[nn.Parameter], device: torch.device) -> Tensor:
    grads = [p.grad for p in params if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads).float().square() if grads else torch.zeros((), device=device)


def _sizes(batch: Batch) -> Any:
    """Returns what the shapes in a micro-batch are known by."""
    named = {("", name): stream for name, stream in batch.streams.items()}
    named |= {(view, name): s for view, streams in batch.views.items() for name, s in streams.items()}
    return tuple(
        (*key, tuple(s.data.shape), *((n, tuple(x.shape)) for n, x in s.extra.items()))
        for key, s in named.items()
    )


def one_length(batches: Sequence[Batch]) -> list[Batch]:
    """Returns the batches with padding to the longest of each stream among them, so that all have the same shapes.

    Positions that are added are masked, and no loss counts them.
    """
    longest: dict[str, int] = {}
    for batch in batches:
        for name, stream in _all_streams(batch):
            if stream.mask is not None:
                longest[name] = max(longest.get(name, 0), stream.mask.shape[1])

    def change(name: str, stream: Stream) -> Stream:
        if stream.mask is None or stream.mask.shape[1] == longest[name]:
            return stream
        length, more = stream.mask.shape[1], longest[name] - stream.mask.shape[1]

        def padded(value: Tensor, fill: float = 0) -> Tensor:
            if value.dim() < 2 or value.shape[1] != length:
                return value
            return torch.cat([value, value.new_full((len(value), more, *value.shape[2:]), fill)], 1)

        ids = {torch.int64, torch.int32}
        target = {n: padded(v, IGNORE if v.dtype in ids else 0) for n, v in stream.target.items()}
        # flat places are of another length
        return replace(replace(stream, places={}, target={}).map(padded), target=target)

    return [batch.map_streams(change) for batch in batches]


def _all_streams(batch: Batch) -> Iterable[tuple[str, Stream]]:
    yield from batch.streams.items()
    for streams in batch.views.values():
        yield from streams.items()


def need_pipeline(net: Any, num: int) -> None:
    """Raises ValueError with the reason if a pipeline of `num` workers does not give the losses and gradients of a `Net`."""
    if problem := chain_problem(net.model, num):
        raise ValueError(problem)
    if net.teachers:
        raise ValueError(
            f"mesh: pipeline: teacher {next(iter(net.teachers))} follows the whole model, of which each worker has a part"
        )
    for objective in net.all_objectives():
        if objective.SCOPE != "sample":
            raise ValueError(
                f"mesh: pipeline: {type(objective).__name__} compares rows or layers that are never in one worker at a "
                "time; use `data` or `shard`"
            )
    for task in net.tasks:
        views = sorted({view for view, _ in net.tasks[task]})
        if len(views) > 1:
            where = f"tasks.{task}" if task else "objectives"
            raise ValueError(
                f"mesh: pipeline: {where} look at views {', '.join(map(repr, views))}, each a pass of its own, and a "
                "pipeline has one pass per micro-batch; give each view a task of its own"
            )
