"""Denoising autoencoders against a second implementation, in float64, with gradients by hand; stacking."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import float64
from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.denoise import Denoise
from vlpipe.models.systems.pretext.denoising_autoencoder import DenoisingAutoencoder


def batch(units: int, num: int = 3) -> Batch:
    keep = (torch.rand(num, units) < 0.7).byte()
    extra = {"keep": keep, "added": torch.rand(num, units).double()}
    return Batch({"image": Stream(torch.randn(num, 3, 4, 4).double(), extra=extra)}, same=torch.arange(num))


def pixels(given: Batch) -> Tensor:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return (given.stream("image").data * std + mean).clamp(0, 1).flatten(1)


def test_loss_and_gradients_by_hand() -> None:
    """With h = s(W x~ + b), z = s(W' h + c): d/dc = z - x, d/dW = (z - x)' h + (W (z - x) h (1 - h)) x~."""
    model, given = noisy(DenoisingAutoencoder(image_size=4, widths=[5], grey=False)).double(), batch(48)
    with float64():
        out = Outputs(model, given)
        found: Any = Denoise()(out)
    (found["denoise"].total / 3).backward()
    weight, bias, back = (p.detach() for p in (model.layers[0].weight, model.layers[0].bias, model.back_bias))
    extra, clean = given.stream("image").extra, pixels(given)
    torch.testing.assert_close(out.clean, clean, atol=1e-6, rtol=0)
    read = out.clean.detach() * extra["keep"] + extra["added"]
    hidden = torch.sigmoid(read @ weight.t() + bias)
    z = torch.sigmoid(hidden @ weight + back)
    x = out.clean.detach()
    wanted = -(x * z.log() + (1 - x) * (1 - z).log()).sum(1).mean()
    torch.testing.assert_close(found["denoise"].total.detach() / 3, wanted)
    error = (z - x) / 3
    inner = error @ weight.t() * hidden * (1 - hidden)
    torch.testing.assert_close(model.back_bias.grad, error.sum(0))
    torch.testing.assert_close(model.layers[0].bias.grad, inner.sum(0))
    torch.testing.assert_close(model.layers[0].weight.grad, hidden.t() @ error + inner.t() @ read)
    least = -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum()
    torch.testing.assert_close(found["denoise_entropy"].total.detach(), least)
    assert float(found["denoise"].total) > float(least)


def test_squared_errors_are_of_what_comes_before_the_sigmoid() -> None:
    model, given = noisy(DenoisingAutoencoder(image_size=4, widths=[5], grey=False)).double(), batch(48)
    with float64():
        out = Outputs(model, given)
        found: Any = Denoise(kind="squared")(out)["denoise"]
    torch.testing.assert_close(found.total, (out.denoised - out.clean).square().sum())
    with pytest.raises(ValueError, match="kind is cross_entropy or squared"):
        Denoise(kind="other")  # type: ignore[arg-type]


def test_a_second_layer_denoises_what_the_first_says(tmp_path: Any) -> None:
    first = noisy(DenoisingAutoencoder(image_size=4, widths=[5], grey=False))
    folder.save(first, tmp_path)
    second = DenoisingAutoencoder(image_size=4, widths=[5, 4], grey=False)
    folder.copy_part(second, folder.load(tmp_path), "layers.0", "layers.0")
    assert [p.requires_grad for p in second.layers[0].parameters()] == [False, False]
    given = batch(5).map(lambda v: v.float() if v.is_floating_point() else v)
    out = Outputs(second, given)
    hidden = torch.sigmoid(first.layers[0](out.values))
    torch.testing.assert_close(out.clean, hidden)
    found: Any = Denoise()(out)["denoise"]
    found.total.backward()
    assert second.layers[0].weight.grad is None
    assert second.layers[1].weight.grad is not None
    assert out.image_feat.shape == (3, 4)
    torch.testing.assert_close(
        out.image_feat, torch.nn.functional.normalize(torch.sigmoid(second.layers[1](hidden)), dim=1)
    )


def test_closed_form_and_grey_pictures() -> None:
    """Weights of zero say 1/2 everywhere: log 2 nats per value."""
    model = DenoisingAutoencoder(image_size=4, widths=[3])
    for parameter in model.parameters():
        parameter.data.zero_()
    given = batch(16).map(lambda v: v.float() if v.is_floating_point() else v)
    found: Any = Denoise()(Outputs(model, given))["denoise"]
    assert float(found.total.detach()) / 3 == pytest.approx(16 * math.log(2), rel=1e-6)
    rgb = pixels(given).view(3, 3, 16)
    grey = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    inside = ((rgb > 0) & (rgb < 1)).all(1)
    torch.testing.assert_close(Outputs(model, given).values[inside], grey[inside], atol=1e-5, rtol=0)
    without = Batch({"image": Stream(given.stream("image").data)}, given.same)
    with pytest.raises(ValueError, match="needs a view with noise:Noise"):
        _ = Outputs(model, without).denoised
    with pytest.raises(ValueError, match="at least one layer"):
        DenoisingAutoencoder(widths=[])
