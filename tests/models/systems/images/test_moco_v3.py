"""MoCo v3 against a second implementation, written from the paper's algorithm 1, and its slow teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.parity import noisy
from tests.models.second_resnet import batch_norm, float64, unit
from vlpipe.models.blocks.patches import sincos_positions
from vlpipe.models.cosine_ema import CosineEma
from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images import moco as objectives
from vlpipe.models.systems.images.moco_v3 import MocoV3
from vlpipe.stages.train.build import Net

TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "hidden": 12,
    "projection_dim": 6,
}
TEMP, LR, STEPS = 0.2, 0.05, 4


def two_views(step: int, num: int = 5) -> Batch:
    draw = torch.Generator().manual_seed(step)
    streams = {
        name: Stream(torch.randn(num, 3, 16, 16, generator=draw).double()) for name in ("image", "second")
    }
    return Batch(streams, same=torch.arange(num), step=Step(number=step))


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].t() + w.get(f"{name}.bias", torch.zeros(()))


def vit(pixels: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The class token of a ViT of two heads, with a strided convolution for patches."""
    kernel = w["patches.patch.weight"].unflatten(1, (3, 8, 8))
    x = nn.functional.conv2d(pixels, kernel, w["patches.patch.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["patches.class_token"].expand(len(x), -1, -1), x], dim=1) + sincos_positions(2, 16)
    for k in range(2):
        at = f"vision.blocks.{k}"
        q, key, v = linear(norm(x, w, f"{at}.norm1"), w, f"{at}.qkv").chunk(3, dim=-1)
        mixed = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = q[..., head] @ key[..., head].transpose(1, 2) / math.sqrt(8)
            mixed.append(scores.softmax(-1) @ v[..., head])
        x = x + linear(torch.cat(mixed, -1), w, f"{at}.out")
        inner = nn.functional.gelu(linear(norm(x, w, f"{at}.norm2"), w, f"{at}.up"))
        x = x + linear(inner, w, f"{at}.down")
    return norm(x, w, "vision.norm")[:, 0]


def mlp(x: Tensor, w: dict[str, Tensor], name: str, layers: int) -> Tensor:
    for k in range(layers):
        x = batch_norm(linear(x, w, f"{name}.{3 * k}"), w, f"{name}.{3 * k + 1}")
        x = x.clamp(min=0) if k < layers - 1 else x
    return x


def ctr(q: Tensor, k: Tensor) -> Tensor:
    logits = unit(q) @ unit(k).t() / TEMP
    return 2 * TEMP * (logits.logsumexp(1) - logits.diagonal()).mean()


def algorithm_1(start: dict[str, Tensor], frozen: set[str]) -> list[tuple[Tensor, dict[str, Tensor], float]]:
    """(loss, gradients, momentum before the step) of each step, by plain SGD."""
    f_q = {name: value.clone().requires_grad_(name not in frozen) for name, value in start.items()}
    f_k = {name: value.clone() for name, value in start.items()}
    found = []
    for step in range(STEPS):
        # the released code's place of the update; before the first step both are equal, so it is the paper's, too
        m = 1 - (1 - 0.9) * (math.cos(math.pi * step / STEPS) + 1) / 2
        for name, value in f_k.items():
            f_k[name] = m * value + (1 - m) * f_q[name].detach()
        x1, x2 = (two_views(step).stream(name).data for name in ("image", "second"))
        q1, q2 = (mlp(mlp(vit(x, f_q), f_q, "projector", 3), f_q, "predictor", 2) for x in (x1, x2))
        k1, k2 = (mlp(vit(x, f_k), f_k, "projector", 3) for x in (x1, x2))
        loss = ctr(q1, k2) + ctr(q2, k1)
        trained = {name: value for name, value in f_q.items() if value.requires_grad}
        grads = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        with torch.no_grad():
            for name, grad in grads.items():
                f_q[name] -= LR * grad
        found.append((loss.detach(), grads, m))
    return found


@pytest.mark.parametrize("train_patches", [False, True])
def test_losses_and_gradients_are_those_of_algorithm_1(train_patches: bool) -> None:
    model = noisy(MocoV3(**TINY, train_patches=train_patches)).double()
    model.patches.positions = sincos_positions(2, 16)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == (set() if train_patches else {"patches.patch.weight", "patches.patch.bias"})
    teacher = CosineEma(momentum=0.9, steps=STEPS)
    net = Net(model, [(1.0, "", objectives.MocoV3(temp=TEMP))], {"ema": teacher}).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    for step, (loss, grads, momentum) in enumerate(algorithm_1(start, frozen)):
        with float64():
            term = net(two_views(step))["moco_v3"]
        assert teacher.momentum == pytest.approx(momentum)
        assert float(term.total.detach() / term.count) == pytest.approx(float(loss), rel=1e-7)
        (term.total / term.count).backward()
        for name, grad in grads.items():
            torch.testing.assert_close(
                model.get_parameter(name).grad, grad, rtol=1e-5, atol=1e-8, msg=f"step {step}, {name}"
            )
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("num", [1, 4])
def test_closed_forms(num: int) -> None:
    """All keys equal: log N, twice, times 2 temp; then each like its query and orthogonal to others."""
    temp = 0.5

    def loss(queries: Tensor, keys: Tensor) -> tuple[float, float]:
        batch = Batch({}, same=torch.arange(num))
        out = Outputs.of_features(None, batch, {"queries": queries, "ema.keys": keys})
        found: Any = objectives.MocoV3(temp=temp)(out)
        return float(found["moco_v3"].total) / num, float(found["moco_v3_accuracy"].total) / num

    equal = torch.ones(num, 2, 4) / 2
    assert loss(equal, equal)[0] == pytest.approx(4 * temp * math.log(num), abs=1e-6)
    apart = torch.eye(2 * num).unflatten(0, (num, 2))
    partner = apart.flip(1)
    wanted = 4 * temp * (math.log(math.exp(1 / temp) + num - 1) - 1 / temp)
    assert loss(apart, partner) == pytest.approx((wanted, 1.0), abs=1e-6)
    assert loss(apart, apart)[0] == pytest.approx(
        4 * temp * math.log(num), abs=1e-6
    )  # the same view says nothing


def test_the_teacher_has_no_predictor_and_slows_down() -> None:
    model = MocoV3(**TINY)
    teacher = CosineEma(steps=10, momentum=0.99)
    teacher.bind(model)
    assert isinstance(teacher.copy.predictor, nn.Identity)
    assert isinstance(model.predictor, nn.Sequential)
    momenta = []
    for _ in range(12):
        teacher.follow(model)
        momenta.append(teacher.momentum)
    wanted = [1 - 0.01 * (math.cos(math.pi * min(k, 10) / 10) + 1) / 2 for k in range(12)]
    assert momenta == pytest.approx(wanted)
    assert momenta[0] == pytest.approx(0.99)
    assert momenta[10] == momenta[11] == 1
    other = CosineEma(steps=10, momentum=0.99)
    other.bind(model)
    other.follow(model)
    state = {name: value.clone() for name, value in other.state_dict().items()}
    fresh = CosineEma(steps=10, momentum=0.99)
    fresh.bind(model)
    fresh.load_state_dict(state)
    fresh.follow(model)
    assert fresh.momentum == pytest.approx(wanted[1])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        CosineEma(steps=0)


def test_sizes_and_start() -> None:
    model = MocoV3(image_size=32, patch_size=16, width=48, layers=1, heads=3)
    assert [tuple(p.shape) for p in model.projector.parameters() if p.ndim == 2] == [
        (4096, 48),
        (4096, 4096),
        (256, 4096),
    ]
    assert [tuple(p.shape) for p in model.predictor.parameters() if p.ndim == 2] == [(4096, 256), (256, 4096)]
    assert float(model.vision.blocks[0].qkv.weight.detach().abs().max()) == pytest.approx(
        math.sqrt(6 / 96), rel=0.01
    )
    assert not model.patches.positions.requires_grad
    assert model.streams()["second"]["size"] == 32
