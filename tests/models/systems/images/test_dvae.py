"""DALL-E's discrete VAE: decoder and loss against a second implementation, closed forms, its use as a codebook."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from vlpipe.models import folder
from vlpipe.models.codebooks.base import MEAN, STD
from vlpipe.models.codebooks.dalle_decoder import mapped, unmapped
from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.elb import Elb, gumbel, half_cosine, logit_laplace_nats
from vlpipe.models.systems.images.dvae import Dvae

TINY: dict[str, Any] = {"num_codes": 7, "image_size": 16, "width": 8, "depth": 2, "code_width": 5}


def model_of(**changes: Any) -> Dvae:
    return noisy(Dvae(**{**TINY, **changes}), but="nothing")


def normalised(values: Tensor) -> Tensor:
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def second_decoder(state: dict[str, Tensor], weights: Tensor, depth: int) -> Tensor:
    """The decoder as the paper's appendix draws it, by names of its weights."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2)

    x = conv("input", weights)
    for k in range(4):
        for i in range(depth):
            name, y = f"groups.{k}.{i}", x
            for number in range(1, 5):
                y = conv(f"{name}.conv{number}", y.clamp(min=0))
            shortcut = conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in state else x
            x = shortcut + y / (4 * depth) ** 2
        if k < 3:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("output", x.clamp(min=0))


def test_the_decoder_is_that_of_a_second_implementation() -> None:
    model = model_of()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.decoder.named_parameters()}
    weights = torch.randn(3, 7, 2, 2).softmax(1)
    ours, wanted = model.decoded(weights), second_decoder(state, weights, 2)
    assert ours.shape == (3, 6, 16, 16)
    torch.testing.assert_close(ours, wanted, **TOLERANCE)
    ours.sin().sum().backward()
    wanted.sin().sum().backward()
    for name, parameter in model.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, **TOLERANCE, msg=name)


def test_sizes_are_those_of_the_published_decoder() -> None:
    """Counted from the sizes in the released code."""
    with torch.device("meta"):
        decoder = Dvae().decoder
    widths, count = [128, 2048, 1024, 512, 256], 8192 * 128 + 128 + 256 * 6 + 6
    for before, width in pairwise(widths):
        for start in (before, width):
            inner = width // 4
            count += start * inner + 2 * 9 * inner * inner + 9 * inner * width + 3 * inner + width
            count += start * width + width if start != width else 0
    assert sum(p.numel() for p in decoder.parameters()) == count


def test_the_loss_and_its_gradients_are_those_of_a_second_implementation() -> None:
    """The same noise in both; step 30 of 100 for the weight of the KL term, of 200 for the temperature."""
    model, objective = (
        model_of(),
        Elb(kl_weight=6.6, kl_steps=100, temperature=(1.0, 1 / 16), temperature_steps=200),
    )
    values = torch.rand(3, 3, 16, 16)
    batch = Batch({"image": Stream(normalised(values))}, same=torch.arange(3), step=Step(number=30))
    torch.manual_seed(5)
    found: Any = objective(Outputs(model, batch))
    found["elb"].total.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    torch.manual_seed(5)
    logits = model.encoder.logits(values)
    noise = -(-torch.rand_like(logits).log()).log()
    tau = 1 / 16 + (1 - 1 / 16) * (1 + math.cos(math.pi * 0.15)) / 2
    beta = 6.6 * (1 - math.cos(math.pi * 0.3)) / 2
    soft = ((logits + noise) / tau).softmax(1)
    location, log_scale = model.decoder(soft).split(3, 1)
    x = 0.8 * values + 0.1
    logit_x = (x / (1 - x)).log()
    laplace = torch.distributions.Laplace(location, log_scale.exp())
    nats = -(laplace.log_prob(logit_x) - (x * (1 - x)).log()).sum((1, 2, 3))  # change of variables
    q = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1))
    uniform = torch.distributions.Categorical(logits=torch.zeros(3, 2, 2, 7))
    kl = torch.distributions.kl_divergence(q, uniform).sum((1, 2))
    wanted = ((nats + beta * kl) / (3 * 16 * 16)).sum()
    wanted.backward()
    torch.testing.assert_close(found["elb"].total, wanted, **TOLERANCE)
    torch.testing.assert_close(found["code_kl"].total, kl.sum() / 4, **TOLERANCE)
    assert found["elb"].count == 3
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_density_of_pixels_integrates_to_one() -> None:
    """Over the values that pixels can be mapped to and beyond, (0, 1)."""
    x = torch.linspace(1e-5, 1 - 1e-5, 400_001, dtype=torch.float64)
    location, log_scale = torch.tensor(0.7), torch.tensor(-0.4)
    density = (-logit_laplace_nats(x.sub(0.1).div(0.8), location, log_scale)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-4)


def test_schedules_are_half_cosines() -> None:
    assert [half_cosine(0.0, 6.6, p) for p in (0, 0.5, 1, 7)] == pytest.approx([0, 3.3, 6.6, 6.6])
    assert half_cosine(1.0, 1 / 16, 0.25) == pytest.approx(1 / 16 + 15 / 16 * (1 + math.sqrt(0.5)) / 2)
    with pytest.raises(ValueError, match="kl_steps and temperature_steps must be at least 1"):
        Elb(kl_steps=0)


def test_the_likeliest_noisy_code_is_drawn_as_often_as_its_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel(torch.zeros(60_000, 3))).argmax(1)
    shares = draws.bincount(minlength=3) / 60_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.01)


def test_codes_of_an_image_and_an_image_of_codes() -> None:
    model, values = model_of(), torch.rand(5, 3, 16, 16)
    out = outputs(model, image=Stream(normalised(values)))
    torch.testing.assert_close(out.pixels, values)
    codes = out.image_codes
    assert torch.equal(codes, out.code_logits.argmax(1).flatten(1))
    painted = model.paint(codes)
    assert painted.shape == (5, 3, 16, 16)
    one_hot = F.one_hot(codes.view(5, 2, 2), 7).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(painted, ((model.decoded(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1))
    torch.testing.assert_close(unmapped(mapped(values)), values)
    with pytest.raises(ValueError, match="image_size must be a multiple of 8, got 20"):
        model_of(image_size=20)


def test_weights_start_as_in_the_released_code() -> None:
    """A normal of variance 1 / inputs, zero biases; all of them are trained."""
    model = Dvae(num_codes=64, image_size=16, width=32, depth=1, code_width=32)
    assert all(p.requires_grad for p in model.parameters())
    conv = model.encoder.groups[3][0].conv1
    assert float(conv.weight.detach().std()) == pytest.approx((9 * conv.in_channels) ** -0.5, rel=0.05)
    assert not any(bool(p.any()) for name, p in model.named_parameters() if name.endswith("bias"))


def test_a_trained_encoder_is_a_codebook_of_other_systems(tmp_path: Path) -> None:
    from vlpipe.models.systems.images.beit import Beit

    model = model_of()
    folder.save(model, tmp_path)
    spec = {"use": "dalle:DalleEncoder", "num_codes": 7, "width": 8, "depth": 2}
    beit = Beit(num_codes=7, image_size=32, patch_size=16, width=16, layers=1, heads=2, codebook=spec)
    folder.copy_part(beit, folder.load(tmp_path), "encoder", "codebook")
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(beit.codebook(pixels), model.encoder(pixels))
