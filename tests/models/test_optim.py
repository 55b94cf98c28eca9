"""Which parameters are trained, at which rate and by which optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vlpipe.models.optim.frozen import evaluate_frozen, freeze, frozen_names, restore, trained_state
from vlpipe.models.optim.groups import Defaults, Several, build_optimiser, parameter_groups
from vlpipe.models.optim.lars import Lars
from vlpipe.models.optim.parameter_group import ParameterGroup

DEFAULTS = Defaults(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)) for _ in range(3)
        )


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text, self.head = Tower(), Tower(), nn.Linear(6, 2)


@pytest.fixture
def model() -> Two:
    torch.manual_seed(0)
    return Two()


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_and_trained_globs(model: Two) -> None:
    everything = trained(model)
    freeze(model, freeze=["vision.*"])
    assert trained(model) == {name for name in everything if not name.startswith("vision")}
    other = Two()
    freeze(other, train=["vision.layers.2.*", "head.*"], freeze=["head.bias"])
    assert trained(other) == {n for n in everything if n.startswith("vision.layers.2")} | {"head.weight"}


def test_globs_that_match_nothing_or_everything_are_refused(model: Two) -> None:
    with pytest.raises(
        ValueError, match=r"freeze: no parameter of the model matches 'vison\.\*'; there are vision\.\*"
    ):
        freeze(model, freeze=["vison.*"])
    with pytest.raises(ValueError, match="train: no parameter of the model matches 'x'"):
        freeze(model, train=["x"])
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        freeze(model, freeze=["*"])


def test_frozen_modules_are_in_evaluation_mode(model: Two) -> None:
    freeze(model, freeze=["vision.*", "text.layers.0.*"])
    evaluate_frozen(model.train())
    assert not any(module.training for module in model.vision.modules())
    assert not any(module.training for module in model.text.layers[0].modules())
    assert model.training
    assert model.text.layers[1][2].training
    before = copy.deepcopy(model.vision.state_dict())
    x = torch.randn(8, 6)
    assert torch.equal(model.vision.layers[0](x), model.vision.layers[0](x))
    assert all(torch.equal(value, before[name]) for name, value in model.vision.state_dict().items())


def test_a_checkpoint_has_what_training_changes(model: Two) -> None:
    freeze(model, freeze=["vision.*"])
    evaluate_frozen(model.train())
    frozen = frozen_names(model)
    state = trained_state(model.state_dict(), frozen)
    assert set(state) == {name for name in model.state_dict() if not name.startswith("vision")}
    other = Two()
    restore(other, state, frozen)
    assert torch.equal(other.head.weight, model.head.weight)
    assert not torch.equal(other.vision.embed.weight, model.vision.embed.weight)
    del state["head.bias"]
    with pytest.raises(RuntimeError, match=r"missing \['head\.bias'\], unknown \[\]"):
        restore(other, state, frozen)


def scales(model: nn.Module, *rules: ParameterGroup) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, DEFAULTS, rules)
    return {names[id(p)]: kind.lr_scale for kind, params in groups.items() for p in params}


def test_layer_decay_is_beits(model: Two) -> None:
    """BEiT, MAE: decay ** (num_layers + 1 - id), id 0 for embeddings, i + 1 for block i, num_layers + 1 for heads."""
    rule = ParameterGroup(match=["vision.layers.*"], below=["vision.embed.*"], layer_decay=0.5, lr=2e-3)
    found = scales(model, rule)
    for name, scale in found.items():
        tower, _, rest = name.partition(".")
        wanted = 1.0
        if tower == "vision":
            layer_id = 0 if rest.startswith("embed") else int(rest.split(".")[1]) + 1
            wanted = 2.0 * 0.5 ** (4 - layer_id)
        assert scale == pytest.approx(wanted), name


def test_decay_of_matrices_alone(model: Two) -> None:
    params = dict(model.named_parameters())
    defaults = Defaults(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999), no_decay=["embed"])
    groups = parameter_groups(model, defaults, [ParameterGroup(match=["text.*"], weight_decay=0.3)])
    decays = {id(p): kind.weight_decay for kind, group in groups.items() for p in group}
    for name, parameter in params.items():
        decays_not = "embed" in name or parameter.dim() < 2
        wanted = 0.0 if decays_not else 0.3 if name.startswith("text") else 0.1
        assert decays[id(parameter)] == wanted, name


def test_rules_that_do_not_fit_are_refused(model: Two) -> None:
    for rules, error in (
        ([ParameterGroup(match=["nothing.*"])], r"groups: no parameter of the model matches 'nothing\.\*'"),
        (
            [ParameterGroup(match=["text.*"]), ParameterGroup(match=["text.embed.*"])],
            r"text\.embed\.weight is matched by groups 0 and 1",
        ),
        (
            [ParameterGroup(match=["text.*"], layer_decay=0.5)],
            r"text\.embed\.weight has none; list it in `below`",
        ),
    ):
        with pytest.raises(ValueError, match=error):
            parameter_groups(model, DEFAULTS, rules)
    with pytest.raises(ValueError, match="no_decay: no parameter name contains 'zzz'"):
        parameter_groups(model, Defaults(lr=1, weight_decay=0, betas=(0, 0), no_decay=["zzz"]))


def test_two_optimisers_do_what_each_does_alone(model: Two) -> None:
    alone = copy.deepcopy(model)
    both = build_optimiser(
        model, DEFAULTS, [ParameterGroup(match=["vision.*"], optimiser="sgd", lr=1e-2, momentum=0.8)]
    )
    assert isinstance(both, Several)
    vision = [p for n, p in alone.named_parameters() if n.startswith("vision")]
    matrices, vectors = ([p for p in vision if (p.dim() > 1) == big] for big in (True, False))
    sgd = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=1e-2, momentum=0.8
    )
    adam = build_optimiser(nn.ModuleDict({"text": alone.text, "head": alone.head}), DEFAULTS)
    for step in range(3):
        for net in (model, alone):
            torch.manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
        for group in both.param_groups:
            group["lr"] = 1e-3 * group["lr_scale"]
        both.step()
        sgd.step()
        adam.step()
        both.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7, msg=name)


def test_the_state_of_two_optimisers_is_restored(model: Two) -> None:
    rules = [ParameterGroup(match=["vision.*"], optimiser="lars")]
    first = build_optimiser(model, DEFAULTS, rules)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.step()
    other = copy.deepcopy(model)
    second = build_optimiser(other, DEFAULTS, rules)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for net, one in ((model, first), (other, second)):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        one.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_lars_is_the_papers_step() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    optimiser = Lars([weight, bias], lr=0.1, momentum=0.9, weight_decay=0.01, trust=0.002)
    w, b = weight.detach().clone(), bias.detach().clone()
    velocity: list[Tensor] = [torch.zeros_like(w), torch.zeros_like(b)]
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(3, 4), torch.randn(3)
        change = weight.grad + 0.01 * w
        velocity[0] = 0.9 * velocity[0] + 0.002 * w.norm() / change.norm() * change
        velocity[1] = 0.9 * velocity[1] + bias.grad
        w, b = w - 0.1 * velocity[0], b - 0.1 * velocity[1]
        optimiser.step()
    torch.testing.assert_close(weight.detach(), w)
    torch.testing.assert_close(bias.detach(), b)
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    Lars([zero], lr=0.1).step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.1))
