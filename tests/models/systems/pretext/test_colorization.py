"""Colorization against a second implementation, in float64; the bins, their weights and the annealed mean by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_alexnet import conv, deconv, normed
from tests.models.second_resnet import float64
from vlpipe.models.blocks.colour.bins import ColourBins
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.colours import ColourClasses
from vlpipe.models.systems.pretext.colorization import Colorization

# layers, stride of the last, dilation of each stage: table 4 of the paper
STAGES = [(2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 2), (3, 1, 2), (3, 1, 1)]


def small() -> Any:
    model = noisy(Colorization(image_size=16, width=2), but="prior")
    model.bins.prior.data.copy_(torch.rand(model.bins.num_bins).softmax(0))
    return model.double().train()


def pictures(num: int = 3) -> Batch:
    return Batch({"image": Stream(torch.randn(num, 3, 16, 16).double())}, same=torch.arange(num))


def logits_of(lightness: Tensor, w: dict[str, Tensor]) -> Tensor:
    x = (lightness - 50) / 50
    for stage, (layers, stride, dilation) in enumerate(STAGES):
        for k in range(layers):
            at, step = f"vision.{stage}.{2 * k}", stride if k == layers - 1 else 1
            x = conv(x, w[f"{at}.weight"], w[f"{at}.bias"], step, dilation, dilation).clamp(min=0)
        x = normed(x)
    x = deconv(x, w["up.0.weight"], w["up.0.bias"], 2, 1).clamp(min=0)
    for k in (2, 4):
        x = conv(x, w[f"up.{k}.weight"], w[f"up.{k}.bias"], 1, 1).clamp(min=0)
    return conv(x, w["colour_head.weight"], w["colour_head.bias"])


def equation_2(logits: Tensor, lab: Tensor, bins: Any) -> Tensor:
    """Place by place; soft bins by sorting distances, weights by equation 4."""
    prior = bins.prior.double()
    rare = 1 / (0.5 * prior + 0.5 / len(prior))
    rare = rare / (rare * prior).sum()
    pictures = []
    for own, truth in zip(logits, lab, strict=True):
        losses = []
        for y in range(own.shape[1]):
            for x in range(own.shape[2]):
                squares = ((bins.points - truth[1:, 4 * y, 4 * x]) ** 2).sum(1)
                nearest = squares.argsort()[:5]
                kernel = torch.exp(-squares[nearest] / (2 * 5**2))
                said = own[:, y, x] - own[:, y, x].logsumexp(0)
                losses.append(-rare[nearest[0]] * (kernel / kernel.sum() * said[nearest]).sum())
        pictures.append(torch.stack(losses).mean())
    return torch.stack(pictures).mean()


def test_loss_and_gradients_are_those_of_a_second_implementation() -> None:
    model, batch = small(), pictures()
    with float64():
        out = Outputs(model, batch)
        term: Any = ColourClasses()(out)["colours"]
        lab = model.lab(batch.stream("image").data)
    (term.total / term.count).backward()
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    logits = logits_of(lab[:, :1], weights)
    torch.testing.assert_close(out.colour_logits, logits)
    wanted = equation_2(logits, lab, model.bins)
    wanted.backward()
    torch.testing.assert_close(term.total / term.count, wanted)
    for name, weight in weights.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, weight.grad, rtol=1e-6, atol=1e-9, msg=name
        )
    assert model.bins.prior.grad is None


def test_only_lightness_is_read() -> None:
    model, batch = small().eval(), pictures()
    lab = model.lab(batch.stream("image").data)
    grey = torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], 1)
    inside = (lab[:, 1:].abs().amax() > 5) and bool((lab[:, 0] > 0).all())
    assert inside
    with float64():
        one, other = (model.colour_logits(Given(model, x)) for x in (lab, grey))
    assert torch.equal(one, other)


class Given:
    """Outputs of a Lab picture."""

    def __init__(self, model: Any, lab: Tensor) -> None:
        self.model, self.lab_pixels = model, lab

    @property
    def vision_maps(self) -> Tensor:
        found: Tensor = self.model.vision_maps(self)
        return found


def test_grey_pictures_count_nothing() -> None:
    model, batch = small().eval(), pictures()
    pixels = batch.stream("image").data
    level = torch.rand(1, 1, 16, 16).double()
    pixels[1] = (level - model.lab.mean) / model.lab.std
    one = ColourClasses()(Outputs(model, batch))["colours"]
    others = Batch({"image": Stream(pixels[[0, 2]])}, same=torch.arange(2))
    two = ColourClasses()(Outputs(model, others))["colours"]
    torch.testing.assert_close(one.total, two.total)  # type: ignore[union-attr]


def test_bins_and_their_weights() -> None:
    bins = ColourBins()
    assert bins.num_bins == 309
    assert bool((bins.points % 10 == 0).all())
    assert len({tuple(p.tolist()) for p in bins.points}) == 309
    assert bins.points[bins.nearest(torch.tensor([[4.0, -4.0], [26.0, 33.0]]))].tolist() == [[0, 0], [30, 30]]
    chosen, shares = bins.soft(torch.tensor([[2.0, 0.0]]))
    points = bins.points[chosen[0]].tolist()
    assert points[:2] == [[0, 0], [10, 0]]
    kernel = [math.exp(-((2 - a) ** 2 + b**2) / 50) for a, b in points]
    assert shares[0].tolist() == pytest.approx([k / sum(kernel) for k in kernel], abs=1e-5)
    bins.prior.data.copy_(torch.rand(309).softmax(0))
    weights = bins.weights()
    assert float((weights * bins.prior).sum()) == pytest.approx(1, abs=1e-5)
    assert bool((weights.argsort() == bins.prior.argsort(descending=True)).all())
    bins.prior.data.fill_(1 / 309)
    torch.testing.assert_close(bins.weights(), torch.ones(309))


def test_the_annealed_mean() -> None:
    """At a low temperature the mode, at a high one the mean of all bins."""
    bins = ColourBins()
    logits = torch.randn(1, 309, 1, 1)
    mode = bins.points[int(logits[0, :, 0, 0].argmax())]
    torch.testing.assert_close(bins.mean_colour(logits, temp=1e-3)[0, :, 0, 0], mode)
    mean = bins.mean_colour(logits, temp=1e6)[0, :, 0, 0]
    torch.testing.assert_close(mean, bins.points.mean(0), atol=1e-2, rtol=0)
    model = small().eval()
    picture = model.coloured(Outputs(model, pictures()))
    assert picture.shape == (3, 3, 16, 16)
    assert 0 <= float(picture.detach().min()) <= float(picture.detach().max()) <= 1


def test_a_picture_is_coloured_with_its_own_lightness_and_the_predicted_colour() -> None:
    model = small().eval()
    sure = torch.full((1, 309, 2, 2), -1e4)
    sure[:, 200] = 1e4
    lab = torch.full((1, 3, 16, 16), 60.0)  # its own a and b do not count
    out: Any = SimpleNamespace(lab_pixels=lab, colour_logits=sure)
    wanted = torch.tensor([60.0, *model.bins.points[200].tolist()])[None, :, None, None].expand(1, 3, 16, 16)
    torch.testing.assert_close(model.coloured(out), model.lab.rgb(wanted))


def test_shares_must_be_loaded() -> None:
    with pytest.raises(ValueError, match="needs the shares of colours"):
        ColourClasses().bind(Colorization(image_size=16, width=2))
    ColourClasses(rebalance=False).bind(Colorization(image_size=16, width=2))
    with pytest.raises(ValueError, match="multiple of 8"):
        Colorization(image_size=20)
