"""The layers of a model: what is sharded, recomputed or cut on its own."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isfunction

from torch import nn


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the elements of a module's `nn.ModuleList`s; of an element that has no `forward` of its own, its children."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from layers_of(child)
            continue
        for layer in child:
            has_forward = type(layer).forward is not nn.Module.forward
            yield from [layer] if has_forward else layer.children()


def units_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers whose weights can be gathered on their own: those that have parts.

    A class whose private parts other modules use says so with GATHERED_ALONE = False.
    """
    others = [part for part in module.modules() if not getattr(part, "GATHERED_ALONE", True)]
    left_out = {inner for part in others for inner in part.modules()}
    for layer in layers_of(module):
        if layer not in left_out and any(True for _ in layer.children()):
            yield layer


def other_passes(layer: nn.Module) -> list[str]:
    """Returns the names of the public methods that a layer's class has besides `forward`: some use its weights, too."""
    own = [vars(cls) for cls in type(layer).__mro__ if cls is not object and not issubclass(nn.Module, cls)]
    found = {name for names in own for name, value in names.items() if isfunction(value)}
    return sorted(n for n in found if not n.startswith("_") and n != "forward" and not hasattr(nn.Module, n))
