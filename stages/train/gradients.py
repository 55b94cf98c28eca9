"""The gradient of one optimiser step: means of losses over micro-batches and ranks, and the gradient cache.

Objectives return sums and counts. A loss is the sum over all rows of the step, on all ranks, divided by their count, so K
micro-batches on W ranks give the value and gradient of one batch. DistributedDataParallel averages gradients over ranks;
each rank's sums are therefore multiplied by W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.adversarial.perturb import Perturbations
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.parallel.pipeline import Pipeline, one_length
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.runtime import seed_all

Values = Mapping[str, Term | Tensor]
Counts = dict[str, Tensor]  # name -> float64 scalar


def accumulate(run: Run, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Runs forward and backward of all micro-batches; gradients are synchronised across ranks in the last one only.

    Returns name -> value of the step's losses, their weighted sum `loss`, and diagnostics: float64 scalars, detached, of
    this rank; their mean over ranks is the value of the whole batch.
    """
    batches = [batch.to(run.device) for batch in batches]
    if run.parallel is None:
        run.join_ranks(batches[0])
    if run.sharded is not None:
        run.net.update_teachers()  # inside of the forward pass they would follow gathered weights, which are freed
    if run.pipeline is not None:
        return _accumulate_in_pipeline(run, run.pipeline, batches)
    if getattr(run.recipe, "adversarial", None) is not None:
        return _accumulate_perturbed(run, batches)
    cached = cached_objectives(run, batches[0]) if len(batches) > 1 else []
    if cached:
        return _accumulate_cached(run, batches, cached)
    counts = None if len(batches) == 1 else _step_counts(run, batches)
    values: dict[str, Tensor] = {}
    for micro, batch in enumerate(batches):
        with _synchronised(run, is_last=micro == len(batches) - 1):
            parts = _contributions(run, _forward(run, batch), counts, len(batches))
            torch.autograd.backward(run.scaler.scale(parts["loss"]))
        _add(values, parts)
    _finish(run)
    _need_gradients(run)
    return values


def _accumulate_in_pipeline(run: Run, pipeline: Pipeline, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """As `accumulate`, with the layers of several workers; the last of them has the losses, which it tells the others."""
    batches = one_length(batches)
    counts = _step_counts(run, batches)
    values: dict[str, Tensor] = {}

    def loss_of(batch: Batch) -> Tensor:
        parts = _contributions(run, _forward(run, batch), counts, len(batches))
        _add(values, parts)
        return parts["loss"]

    pipeline.run(batches, loss_of, run.autocast)
    return pipeline.tell(values if pipeline.chain.is_last else None, batches[0].task)


def _finish(run: Run) -> None:
    if run.sharded is not None:
        run.sharded.finish()


def _accumulate_perturbed(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Adversarial training (Gan et al. 2020, https://arxiv.org/abs/2006.06195, algorithm 1): the mean of the gradients of
    `steps` passes, between which the perturbations of a micro-batch move.
    """
    spec = run.recipe.adversarial  # type: ignore[attr-defined]
    counts = None if len(batches) == 1 else _step_counts(run, batches)
    values: dict[str, Tensor] = {}
    for micro, batch in enumerate(batches):
        perturbations = Perturbations(run.net.model, spec)
        for ascent in range(spec.steps):
            is_last = ascent == spec.steps - 1
            with _synchronised(run, is_last=is_last and micro == len(batches) - 1):
                with run.autocast():
                    found = run.parallel(batch, perturbations=perturbations)
                parts = _contributions(run, found, counts, len(batches))
                parts = {name: part / spec.steps for name, part in parts.items()}
                torch.autograd.backward(run.scaler.scale(parts["loss"]))
            if not is_last:
                perturbations.ascend()
            _add(values, parts)
    return values


def cached_objectives(run: Run, batch: Any) -> list[tuple[str, Objective]]:
    """Returns (view, objective) of those whose loss is of the whole batch: with several micro-batches, they need a cache."""
    active: list[tuple[str, Objective]] = run.net.active(batch.task) if hasattr(run.net, "active") else []
    return [(view, o) for view, o in active if o.SCOPE == "batch"]


def _forward(run: Run, batch: Any) -> Values:
    with run.autocast():
        values: Values = run.parallel(batch)
    return values


def _need_gradients(run: Run) -> None:
    """Raises VlpipeError if a parameter got no gradient in a step that did not search for such: ranks would differ."""
    if getattr(run.parallel, "find_unused_parameters", True):
        return
    for name, parameter in run.net.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise VlpipeError(
                f"training: {name} got no gradient in step {run.step}, but did in the trial before the first step; nothing "
                "of this step was kept. Set find_unused_parameters: true and run again"
            )


def _synchronised(run: Run, *, is_last: bool) -> Any:
    return nullcontext() if is_last or distributed.world_size() == 1 else run.parallel.no_sync()


def _add(values: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        part = part.detach().double()
        values[name] = values[name] + part if name in values else part


def _step_counts(run: Run, batches: Sequence[Batch]) -> Counts:
    """Returns the count of each loss over all micro-batches and ranks, before any forward pass."""
    each = [run.net.counts(batch) for batch in batches]
    return _everywhere({name: sum(_float64(run, c[name]) for c in each) for name in each[0]})  # type: ignore[misc]


def _everywhere(counts: Mapping[str, Tensor]) -> Counts:
    """Returns the counts summed over ranks, in one exchange."""
    if not counts:
        return {}
    summed = distributed.total(torch.stack(list(counts.values())))
    return dict(zip(counts, summed.unbind(), strict=True))


def _float64(run: Run, count: Tensor | float) -> Tensor:
    if isinstance(count, Tensor):
        return count.detach().to(run.device, torch.float64)
    return torch.full((), count, dtype=torch.float64, device=run.device)  # a copy would wait for the device


def _contributions(run: Run, values: Values, counts: Counts | None, num_micro: int) -> dict[str, Tensor]:
    """Returns a micro-batch's part of each mean of the step, and `loss`, the weighted sum of the losses' parts.

    counts: of the whole step; None if this is its only micro-batch. Diagnostics of several micro-batches are means of means.
    """
    own = {name: _float64(run, v.count) for name, v in values.items() if isinstance(v, Term)}
    known = _everywhere({name: count for name, count in own.items() if counts is None or name not in counts})
    parts: dict[str, Tensor] = {"loss": torch.zeros((), device=run.device)}
    for name, value in values.items():
        if isinstance(value, Term):
            whole = known[name] * num_micro if name in known else counts[name]  # type: ignore[index]
            whole = whole.where(
                whole > 0, 1.0
            )  # of none, the sum is 0; a count may be a share of rows, such as 0.9
            mean = value.total * distributed.world_size() / whole.to(value.total.dtype)
        else:
            mean = value / num_micro
        parts[name] = mean
        if name in run.net.losses:
            parts["loss"] = parts["loss"] + run.net.losses[name][1] * mean
    return parts


def _accumulate_cached(
    run: Run, batches: Sequence[Batch], cached: Sequence[tuple[str, Objective]]
) -> dict[str, Tensor]:
    """Gradient cache (Gao et al. 2021, https://arxiv.org/abs/2101.06983): losses of the whole batch from micro-batches.

    First the features of all micro-batches, without gradient; then the losses of the whole batch and their gradient by the
    features; then each micro-batch again, with the same dropout masks, where its features get that gradient.
    """
    net = run.net
    if run.sharded is None:
        net.update_teachers()
    leaves = _leaves(run, batches, cached)
    whole = Batch(streams={}, same=torch.cat([batch.same for batch in batches]), step=batches[0].step)
    values: dict[str, Term | Tensor] = {}
    for own, objective in cached:
        features = {name: leaf for (view, name), leaf in leaves.items() if view == own}
        values |= objective(Outputs.of_features(net.model, whole, features))
    parts = _contributions(run, values, None, 1)
    torch.autograd.backward(run.scaler.scale(parts["loss"]))
    result: dict[str, Tensor] = {}
    _add(result, parts)
    counts = _step_counts(run, batches)
    start = 0
    for micro, batch in enumerate(batches):
        rows = slice(start, start + len(batch))
        start = rows.stop
        grads = {key: leaf.grad[rows] for key, leaf in leaves.items() if leaf.grad is not None}
        _seed_micro(run, micro)
        with _synchronised(run, is_last=micro == len(batches) - 1):
            with run.autocast():
                found = dict(run.parallel(batch, grads))
            surrogate = found.pop(net.SURROGATE)
            parts = _contributions(run, found, counts, len(batches))
            torch.autograd.backward(run.scaler.scale(parts["loss"]) + surrogate)
        _add(result, parts)
    _finish(run)
    return result


def _leaves(
    run: Run, batches: Sequence[Batch], cached: Sequence[tuple[str, Objective]]
) -> dict[tuple[str, str], Tensor]:
    """Returns (view, feature) -> the feature of all micro-batches, (B, ...), which gathers a gradient if a student's."""
    wanted = list(dict.fromkeys((view, name) for view, o in cached for name in o.FEATURES))
    wanted.sort(key=lambda key: "." in key[1])  # the student's first: the second pass computes those alone
    found: dict[tuple[str, str], list[Tensor]] = {key: [] for key in wanted}
    for micro, batch in enumerate(batches):
        _seed_micro(run, micro)
        with torch.no_grad(), run.autocast():
            for key, feature in zip(wanted, run.net(batch, None, wanted), strict=True):
                found[key].append(feature)
    return {key: torch.cat(parts).requires_grad_("." not in key[1]) for key, parts in found.items()}


def _seed_micro(run: Run, micro: int) -> None:
    """Seeds the dropout masks of a micro-batch, so that its second forward pass equals the first."""
    seed_all(run.recipe.seed, run.step, distributed.rank(), micro)
