"""Context encoders against a second implementation, in float64; who is trained by which loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_alexnet import conv, deconv, normed
from tests.models.second_resnet import float64
from vlpipe.models.blocks.convnets.hole_nets import halvings
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.holes import AdversarialHole, HoleError
from vlpipe.models.systems.pretext.inpainting import ContextEncoder

TINY: dict[str, Any] = {"image_size": 16, "bottleneck": 6, "encoder_width": 2, "decoder_width": 2}


def holed(num: int = 4, overlap: int = 1) -> Batch:
    """A hole of 8 x 8 in the middle, of which the inner part is hidden."""
    hidden, counted = torch.zeros(num, 16, 16, dtype=torch.bool), torch.zeros(num, 16, 16).double()
    hidden[:, 4 + overlap : 12 - overlap, 4 + overlap : 12 - overlap] = True
    counted[:, 4:12, 4:12] = 10
    counted[hidden] = 1
    image = Stream(
        torch.randn(num, 3, 16, 16).double(), extra={"hidden": hidden}, target={"counted": counted}
    )
    return Batch({"image": image}, same=torch.arange(num))


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def filled(pixels: Tensor, w: dict[str, Tensor]) -> Tensor:
    """16 -> 8 -> 4 -> 1 -> 4 -> 8; hidden pixels are 0."""

    def norm(x: Tensor, name: str) -> Tensor:
        return normed(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = pixels.clone()
    x[:, :, 5:11, 5:11] = 0
    x = leaky(conv(x, w["encoder.0.weight"], None, 2, 1))
    x = leaky(norm(conv(x, w["encoder.2.weight"], None, 2, 1), "encoder.3"))
    x = leaky(norm(conv(x, w["encoder.5.weight"], None), "encoder.6"))
    x = norm(deconv(x, w["decoder.0.weight"], None, 1, 0), "decoder.1").clamp(min=0)
    return deconv(x, w["decoder.3.weight"], None, 2, 1).tanh()


def told(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The discriminator's logits of pictures of 8 x 8."""
    x = leaky(conv(x, w["0.weight"], None, 2, 1))
    return conv(x, w["2.weight"], None).flatten()


def setup() -> tuple[Any, AdversarialHole, Batch]:
    model = noisy(ContextEncoder(**TINY)).double().train()
    adversary = AdversarialHole(width=2, share=0.25)
    adversary.bind(model)
    adversary.double().train()
    return model, adversary, holed()


def true_part(batch: Batch) -> Tensor:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return 2 * (batch.stream("image").data[:, :, 4:12, 4:12] * std + mean) - 1


def test_losses_and_gradients_are_those_of_a_second_implementation() -> None:
    model, adversary, batch = setup()
    with float64():
        out = Outputs(model, batch)
        error: Any = HoleError()(out)["hole"]
        others: Any = adversary(out)
    total = error.total + others["adversarial"].total + others["discriminator"].total
    (total / 4).backward()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    d = {n: p.detach().clone().requires_grad_() for n, p in adversary.discriminator.named_parameters()}
    fake, real = filled(batch.stream("image").data, w), true_part(batch)
    torch.testing.assert_close(out.filled, fake)
    torch.testing.assert_close(out.true_part, real, rtol=1e-6, atol=1e-6)
    weight = torch.full((8, 8), 10.0).double()
    weight[1:7, 1:7] = 1
    wanted = (weight * (fake - real) ** 2).mean()
    torch.testing.assert_close(error.total / 4, wanted, rtol=1e-6, atol=1e-7)
    fixed = {name: value.detach() for name, value in d.items()}
    fooled = 0.25 * -torch.sigmoid(told(fake, fixed)).log().mean()
    telling = (
        -torch.sigmoid(told(real, d)).log().mean() - (1 - torch.sigmoid(told(fake.detach(), d))).log().mean()
    )
    torch.testing.assert_close(others["adversarial"].total / 4, fooled)
    torch.testing.assert_close(others["discriminator"].total / 4, telling, rtol=1e-6, atol=1e-7)
    (wanted + fooled + telling).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, w[name].grad, rtol=1e-5, atol=1e-7, msg=name)
    for name, parameter in adversary.discriminator.named_parameters():
        torch.testing.assert_close(parameter.grad, d[name].grad, rtol=1e-5, atol=1e-7, msg=name)


def test_hidden_pixels_are_not_read() -> None:
    model, _, batch = setup()
    model.eval()
    image = batch.stream("image")
    changed = torch.where(image.extra["hidden"][:, None], torch.randn(4, 3, 16, 16).double(), image.data)
    other = Batch({"image": Stream(changed, extra=image.extra)}, batch.same)
    assert torch.equal(Outputs(model, batch).filled, Outputs(model, other).filled)
    whole = Batch({"image": Stream(image.data)}, batch.same)
    assert not torch.allclose(Outputs(model, batch).filled, Outputs(model, whole).filled)


def test_errors_by_hand_and_of_the_mean_colour() -> None:
    """A picture whose rest has one colour: the error of the mean colour is the variance around it."""
    model, _, batch = setup()
    image = batch.stream("image")
    pixels = torch.zeros(4, 3, 16, 16).double()
    pixels[:, :, 4:12, 4:12] = 0.5
    flat = Batch({"image": Stream(pixels, extra=image.extra, target=image.target)}, batch.same)
    found: Any = HoleError()(Outputs(model, flat))
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    wanted = float((2 * 0.5 * std).square().mean())
    assert float(found["hole_mean"].total / found["hole_mean"].count) == pytest.approx(wanted, rel=1e-5)


def test_the_whole_picture_may_be_predicted() -> None:
    model = ContextEncoder(**TINY, predicts="image")
    out = Outputs(model.double().eval(), holed(overlap=0))
    assert out.filled.shape == out.true_part.shape == (4, 3, 16, 16)
    counted = out.stream("image").target["counted"]
    found: Any = HoleError()(out)["hole"]
    each = (out.filled - out.true_part).square().mean(1)
    wanted = (each * (counted > 0)).sum((1, 2)) / 64
    assert float(found.total.detach()) == pytest.approx(float(wanted.sum().detach()), rel=1e-5)


def test_sizes_are_those_of_the_released_code() -> None:
    with torch.device("meta"):
        model = ContextEncoder()
        adversary = AdversarialHole()
        adversary.bind(model)
    sizes = {
        n: [tuple(p.shape) for p in part.parameters() if p.ndim == 4] for n, part in model.named_children()
    }
    assert sizes["encoder"] == [
        (64, 3, 4, 4),
        (64, 64, 4, 4),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (512, 256, 4, 4),
        (4000, 512, 4, 4),
    ]
    assert sizes["decoder"] == [
        (4000, 512, 4, 4),
        (512, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 4, 4),
    ]
    discriminator = [tuple(p.shape) for p in adversary.discriminator.parameters() if p.ndim == 4]
    assert discriminator == [
        (64, 3, 4, 4),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (512, 256, 4, 4),
        (1, 512, 4, 4),
    ]
    assert [halvings(side) for side in (8, 16, 64, 128)] == [1, 2, 4, 5]
    for wrong in (12, 4, 100):
        with pytest.raises(ValueError, match="a side must be 8, 16, 32"):
            halvings(wrong)
    with pytest.raises(ValueError, match="predicts is centre or image"):
        ContextEncoder(**TINY, predicts="all")  # type: ignore[arg-type]
