"""What a recipe's losses and layers need so that processes and micro-batches leave the step as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlpipe.models.experts.layer import experts_of
from vlpipe.stages.train.workers.spread import Spread


def need_the_same_step(recipe: Spread, net: Any) -> None:
    """Raises ValueError if a loss or layer of a `Net` depends on how rows are spread over processes and micro-batches."""
    if recipe.micro_batches > 1 or not recipe.keeps_micro_batches:
        _need_no_batch_norm(net)
    if not recipe.keeps_micro_batches:
        _need_no_candidates(recipe, net)
        _need_no_capacity(recipe, net)
    if recipe.balance_tokens and recipe.num_workers > 1:
        _need_losses_of_samples(net)


def _need_losses_of_samples(net: Any) -> None:
    """Raises ValueError if a loss compares samples, of other ranks too, whose batches then have other numbers of samples."""
    others = [type(o).__name__ for o in net.all_objectives() if o.SCOPE != "sample"]
    if others:
        raise ValueError(
            f"balance_tokens: the loss of {', '.join(others)} compares samples, which needs equally many on each of the "
            "workers; set balance_tokens: false, or num_workers: 1"
        )


def _need_no_candidates(recipe: Spread, net: Any) -> None:
    others = [type(o).__name__ for o in net.all_objectives() if o.SCOPE == "rank"]
    if others:
        raise ValueError(f"processes: the loss of {', '.join(others)} is of {_rows_together(recipe)}")


def _need_no_capacity(recipe: Spread, net: Any) -> None:
    for name, layer in experts_of(net).items():
        if layer.capacity_factor is not None:
            raise ValueError(f"processes: what {name} drops depends on {_rows_together(recipe)}")


def _rows_together(recipe: Spread) -> str:
    parts = recipe.num_workers * recipe.accumulate
    return (
        f"the rows that pass forward together, {recipe.batch_size // parts} with num_workers: {recipe.num_workers} and "
        f"{recipe.batch_size // (recipe.num_ranks * recipe.micro_batches)} now; use a number of processes that divides "
        f"num_workers x accumulate = {parts}"
    )


def _need_no_batch_norm(net: nn.Module) -> None:
    """Raises ValueError if a batch norm in training mode would see each micro-batch alone."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"accumulate: {name} is a batch norm, whose statistics are of the rows forwarded together, so micro-batches "
                "do not give the step of one batch; set accumulate: 1, or freeze that part"
            )
