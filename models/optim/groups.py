"""Groups of parameters, each with its learning rate, weight decay and optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlpipe.models.optim.frozen import check_globs, matches
from vlpipe.models.optim.lars import Lars
from vlpipe.models.optim.parameter_group import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What parameters outside all rules have. no_decay: substrings of names without weight decay."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    optimiser: str = "adamw"
    momentum: float = 0.9
    no_decay: Sequence[str] = ()


@dataclass(frozen=True, order=True)
class Kind:
    """What the parameters of one group share; the order of its fields is that of the groups."""

    optimiser: str
    momentum: float
    lr_scale: float
    undecayed: bool
    weight_decay: float


def parameter_groups(
    net: nn.Module, defaults: Defaults, rules: Sequence[ParameterGroup] = ()
) -> dict[Kind, list[nn.Parameter]]:
    """Returns the trained parameters by what they share. Scalars and vectors do not decay, nor do names
    with an entry of `no_decay`.

    Names are those inside `net.model`, if it has one, and of other parts of `net` as they are.

    Raises ValueError if a rule or an entry of `no_decay` matches no parameter, or two rules match the same.
    """
    whole = _whole_name(net)
    params = [(whole(n).removeprefix("model."), p) for n, p in net.named_parameters() if p.requires_grad]
    names = [name for name, _ in params]
    for part in defaults.no_decay:
        if not any(part in name for name in names):
            some = ", ".join(names[:5])
            raise ValueError(f"no_decay: no parameter name contains {part!r}; the names include {some}")
    for rule in rules:
        check_globs((*rule.match, *rule.below), names, "groups")
    depths = [_num_layers(rule, names) for rule in rules]
    found: dict[Kind, list[nn.Parameter]] = {}
    for name, parameter in params:
        own = [i for i, rule in enumerate(rules) if matches(name, (*rule.match, *rule.below))]
        if len(own) > 1:
            raise ValueError(
                f"groups: {name} is matched by groups {own[0]} and {own[1]}; each parameter has at most one"
            )
        rule, depth = (rules[own[0]], depths[own[0]]) if own else (ParameterGroup(match=[]), 0)
        is_vector = sum(size > 1 for size in parameter.shape) <= 1  # true for a class token (1, 1, D) as well
        undecayed = is_vector or any(part in name for part in defaults.no_decay)
        decay = defaults.weight_decay if rule.weight_decay is None else rule.weight_decay
        kind = Kind(
            optimiser=rule.optimiser or defaults.optimiser,
            momentum=rule.momentum if rule.optimiser else defaults.momentum,
            lr_scale=(1.0 if rule.lr is None else rule.lr / defaults.lr) * _layer_scale(rule, name, depth),
            undecayed=undecayed,
            weight_decay=0.0 if undecayed else decay,
        )
        found.setdefault(kind, []).append(parameter)
    return dict(sorted(found.items()))


def _whole_name(net: nn.Module) -> Callable[[str], str]:
    """Returns a function from the name of a part of a matrix that tensor parallelism has cut to the name of the matrix."""
    cut = {name for name, module in net.named_modules() if getattr(module, "PARTS_OF_ONE", False)}

    def whole(name: str) -> str:
        owner, _, kind = name.rpartition(".")
        owner = owner.rpartition(".")[0]
        return f"{owner}.{kind}" if owner in cut else name

    return whole


def _num_layers(rule: ParameterGroup, names: Sequence[str]) -> int:
    if rule.layer_decay is None:
        return 0
    layers = {_layer(name) for name in names if matches(name, rule.match)}
    if None in layers:
        bad = next(n for n in names if matches(n, rule.match) and _layer(n) is None)
        raise ValueError(
            f"groups: layer_decay needs names with the number of a layer, but {bad} has none; list it in `below`"
        )
    return max(number for number in layers if number is not None) + 1


def _layer(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _layer_scale(rule: ParameterGroup, name: str, depth: int) -> float:
    if rule.layer_decay is None:
        return 1.0
    if matches(name, rule.below):
        return float(rule.layer_decay ** (depth + 1))
    layer = _layer(name)
    assert layer is not None  # checked by `_num_layers`
    return float(rule.layer_decay ** (depth - layer))


class Several:
    """Several optimisers as one: each trains its own parameters."""

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimisers = list(optimisers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for one in self.optimisers for group in one.param_groups]

    def step(self) -> None:
        for one in self.optimisers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for one in self.optimisers:
            one.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimisers": [one.state_dict() for one in self.optimisers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for one, saved in zip(self.optimisers, state["optimisers"], strict=True):
            one.load_state_dict(saved)


def build_optimiser(net: nn.Module, defaults: Defaults, rules: Sequence[ParameterGroup] = ()) -> Any:
    """Returns one optimiser for all trained parameters, or `Several`. Each group has `lr_scale`, a factor on the rate.

    Raises ValueError as `parameter_groups` does.
    """
    by_optimiser: dict[tuple[str, float], list[dict[str, Any]]] = {}  # see `in_order`
    for kind, params in parameter_groups(net, defaults, rules).items():
        for own in _by_mesh(params):
            group = {"params": own, "weight_decay": kind.weight_decay, "lr_scale": kind.lr_scale}
            by_optimiser.setdefault((kind.optimiser, kind.momentum), []).append(group)
    made = [_make(name, groups, momentum, defaults) for (name, momentum), groups in by_optimiser.items()]
    return made[0] if len(made) == 1 else Several(made)


def in_order(
    net: nn.Module, defaults: Defaults, rules: Sequence[ParameterGroup] = ()
) -> list[list[nn.Parameter]]:
    """Returns the parameters of each optimiser in the order of its `state_dict()`, if the net is not divided."""
    found: dict[tuple[str, float], list[nn.Parameter]] = {}
    for kind, params in parameter_groups(net, defaults, rules).items():
        found.setdefault((kind.optimiser, kind.momentum), []).extend(params)
    return list(found.values())


def _by_mesh(params: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Returns lists that one fused step can take: parameters that are divided among workers apart from others."""
    found: dict[Any, list[nn.Parameter]] = {}
    for p in params:
        found.setdefault(getattr(p, "device_mesh", None), []).append(p)
    return list(found.values())


def _make(
    name: str, groups: list[dict[str, Any]], momentum: float, defaults: Defaults
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=defaults.lr, momentum=momentum)
    if name == "lars":
        return Lars(groups, lr=defaults.lr, momentum=momentum)
    # one fused call instead of ten per parameter: small models are bound by launch overhead
    return torch.optim.AdamW(groups, lr=defaults.lr, betas=defaults.betas, fused=True)
