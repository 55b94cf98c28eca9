"""What tensor parallelism cuts keeps its name where a recipe names parameters."""

from __future__ import annotations

import torch
from torch import nn

from vlpipe.models.optim.groups import Defaults, in_order, parameter_groups
from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.models.parallel.tensor import Beside, joined, parts_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.qkv = nn.Linear(4, 6)
        self.model.out = nn.Linear(6, 4)


def test_rules_and_lists_mean_the_whole_matrix() -> None:
    whole, cut = Net(), Net()
    cut.load_state_dict(whole.state_dict())
    cut.model.qkv = Beside(cut.model.qkv, 3)  # type: ignore[arg-type]
    defaults = Defaults(
        lr=1.0, weight_decay=0.1, betas=(0.9, 0.99), optimiser="sgd", momentum=0.9, no_decay=["qkv.weight"]
    )
    rules = [ParameterGroup(match=["qkv.bias"], lr=0.5)]
    kinds = {kind: len(found) for kind, found in parameter_groups(whole, defaults, rules).items()}
    assert list(parameter_groups(cut, defaults, rules)) == list(kinds)
    names = {id(p): name for name, p in cut.named_parameters()}
    assert [names[id(p)] for p in in_order(cut, defaults, rules)[0] if "qkv" in names[id(p)]] == [
        *(f"model.qkv.{i}.bias" for i in range(3)),
        *(f"model.qkv.{i}.weight" for i in range(3)),
    ]
    assert parts_of(cut)["model.qkv.bias"] == [f"model.qkv.{i}.bias" for i in range(3)]
    found = joined(cut, cut.state_dict())
    assert list(found) == list(whole.state_dict())
    assert all(torch.equal(found[name], value) for name, value in whole.state_dict().items())
