"""Parts of a model that are not trained. They are in evaluation mode and in no checkpoint, optimiser or moving average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


def matches(name: str, globs: Sequence[str]) -> bool:
    """Returns whether a dotted name matches one of the globs (`vision.*`); `*` also matches dots."""
    return any(fnmatchcase(name, glob) for glob in globs)


def check_globs(globs: Sequence[str], names: Sequence[str], what: str) -> None:
    """Raises ValueError for a glob that matches no parameter."""
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            first = ", ".join(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names))
            raise ValueError(f"{what}: no parameter of the model matches {glob!r}; there are {first}")


def freeze(model: nn.Module, *, train: Sequence[str] = (), freeze: Sequence[str] = ()) -> None:
    """Freezes the parameters that match `freeze`, and, if `train` is given, those that do not match it.

    Raises ValueError if a glob matches no parameter, or nothing is left to train.
    """
    params = dict(model.named_parameters())
    check_globs(train, list(params), "train")
    check_globs(freeze, list(params), "freeze")
    for name, parameter in params.items():
        if matches(name, freeze) or (train and not matches(name, train)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in params.values()):
        raise ValueError("freeze: every parameter of the model is frozen, so there is nothing to train")


def is_frozen(module: nn.Module) -> bool:
    """Returns whether a module has parameters and none of them is trained."""
    params = list(module.parameters())
    return bool(params) and not any(parameter.requires_grad for parameter in params)


def evaluate_frozen(model: nn.Module) -> None:
    """Puts every module of which all parameters are frozen into evaluation mode: no dropout, fixed statistics of norms."""
    if is_frozen(model):
        model.eval()
        return
    for child in model.children():
        evaluate_frozen(child)


def frozen_names(model: nn.Module) -> set[str]:
    """Returns the names in `state_dict()` of what training does not change: frozen parameters, and buffers of frozen modules
    in evaluation mode."""
    found = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        if not module.training and is_frozen(module):
            start = f"{prefix}." if prefix else ""
            found |= {f"{start}{name}" for name, _ in module.named_buffers()}
    return found


def trained_state(state: Mapping[str, Tensor], frozen: set[str]) -> dict[str, Tensor]:
    """Returns the entries of a `state_dict()` that training changes."""
    return {name: value for name, value in state.items() if name not in frozen}


def restore(model: Any, state: Mapping[str, Tensor], frozen: set[str]) -> None:
    """Loads what `trained_state` returned; frozen entries stay as they are. Raises RuntimeError if others are missing."""
    missing, unknown = model.load_state_dict(state, strict=False)
    lost = [name for name in missing if name not in frozen]
    if lost or unknown:
        raise RuntimeError(
            f"the checkpoint does not fit the model: missing {lost[:5]}, unknown {unknown[:5]}"
        )
