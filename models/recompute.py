"""Activation checkpointing: layers keep their input and compute their activations again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_layers(model: nn.Module) -> int:
    """Makes each layer of `model` recompute its activations; returns their number.

    Layers are the elements of its `nn.ModuleList`s. Values and gradients stay the same, dropout included. Raises ValueError
    if it has none. Chen et al. 2016, https://arxiv.org/abs/1604.06174.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError(f"recompute: {type(model).__name__} has no nn.ModuleList, so there are no layers")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def _layers(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _layers(child)
    return found
