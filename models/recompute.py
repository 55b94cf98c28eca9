"""Activation checkpointing: layers keep their input and compute their activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from vlpipe.models.parallel.layers import layers_of

_is_on = True


def recompute_layers(model: nn.Module) -> int:
    """Makes the layers of `model` recompute their activations; returns the number of modules that do.

    Layers: see `layers_of`. Those with a batch norm in training mode are left out: a second pass would count in its
    statistics. Values and gradients stay the same, dropout included. Raises ValueError if there is no such layer.
    Chen et al. 2016, https://arxiv.org/abs/1604.06174.
    """
    layers = [layer for layer in layers_of(model) if not _counts_statistics(layer)]
    if not layers:
        raise ValueError(
            f"recompute: {type(model).__name__} has no layers to recompute: elements of an nn.ModuleList without a batch "
            "norm that is trained"
        )
    for layer in layers:
        layer.forward = partial(_run, layer.forward)
    return len(layers)


@contextmanager
def computed_once() -> Iterator[None]:
    """Context manager in which layers keep their activations."""
    global _is_on
    before, _is_on = _is_on, False
    try:
        yield
    finally:
        _is_on = before


def _run(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs) if _is_on else forward(*args, **kwargs)


def _counts_statistics(layer: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in layer.modules())
