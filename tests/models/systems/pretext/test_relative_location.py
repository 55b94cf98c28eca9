"""Relative location against a second implementation, in float64; what is taken from patches before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_alexnet import alexnet, normed, pool
from tests.models.second_resnet import float64
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.drawn_class import DrawnClass
from vlpipe.models.systems.pretext.relative_location import RelativeLocation, prepared

TINY: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "widths": [4, 6, 4, 8, 6],
    "stem": "small",
    "width": 9,
}
DRAWN = [7, 0, 3, 3]


def pairs(colour: bool = True) -> Batch:
    extra = {"colour": torch.randint(3, (4, 2))} if colour else {}
    image = Stream(torch.randn(4, 2, 3, 8, 8).double(), extra=extra, target={"drawn": torch.tensor(DRAWN)})
    return Batch({"image": image}, same=torch.arange(4))


def one_patch(patch: Tensor, colour: int) -> Tensor:
    """(3, H, W): one colour without its mean, the others 0, with a root mean square of 1."""
    found = torch.zeros_like(patch)
    found[colour] = patch[colour] - patch[colour].mean()
    return found / (found.square().mean().sqrt() + 1e-6)


def network(batch: Batch, w: dict[str, Tensor]) -> Tensor:
    image = batch.stream("image")
    each = [
        one_patch(patch, int(c))
        for pair, colours in zip(image.data, image.extra["colour"], strict=True)
        for patch, c in zip(pair, colours, strict=True)
    ]
    maps = pool(alexnet(torch.stack(each), w, is_small=True, norm=True)).flatten(1)
    patch = normed(maps @ w["patch.0.weight"].t() + w["patch.0.bias"]).clamp(min=0)
    both = torch.cat([patch[0::2], patch[1::2]], 1)
    x = normed(both @ w["both.0.0.weight"].t() + w["both.0.0.bias"]).clamp(min=0)
    x = (x @ w["both.1.weight"].t() + w["both.1.bias"]).clamp(min=0)
    return x @ w["place.weight"].t() + w["place.bias"]


def test_loss_and_gradients_are_those_of_a_second_implementation() -> None:
    model, batch = noisy(RelativeLocation(**TINY)).double().train(), pairs()
    with float64():
        out = Outputs(model, batch)
        found: Any = DrawnClass()(out)
    term = found["drawn"]
    (term.total / term.count).backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = network(batch, weights)
    torch.testing.assert_close(out.logits, logits)
    wanted = torch.stack([r.logsumexp(0) - r[d] for r, d in zip(logits, DRAWN, strict=True)]).mean()
    wanted.backward()
    torch.testing.assert_close(term.total / term.count, wanted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-6, atol=1e-8, msg=name)
    assert float(found["drawn_accuracy"].total) == sum(logits.argmax(1) == torch.tensor(DRAWN))


def test_norms_have_neither_scale_nor_shift() -> None:
    model = RelativeLocation(**TINY)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 5
    assert all(m.weight is None and m.bias is None for m in norms)
    assert not any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        for m in RelativeLocation(**TINY, norm="none").modules()
    )


def test_the_order_of_a_pair_matters() -> None:
    model, batch = noisy(RelativeLocation(**TINY)).double(), pairs(colour=False)
    other = Batch({"image": Stream(batch.stream("image").data.flip(1))}, batch.same)
    assert not torch.allclose(Outputs(model, batch).logits, Outputs(model, other).logits)


def test_brightness_and_tint_of_a_patch_change_nothing() -> None:
    patches = torch.randn(5, 3, 8, 8)
    tinted = 3 * patches + torch.randn(5, 3, 1, 1)
    torch.testing.assert_close(prepared(patches), prepared(tinted), rtol=1e-4, atol=1e-5)
    kept = prepared(patches, torch.tensor([0, 1, 2, 0, 1]))
    assert [int(row.flatten(1).any(1).nonzero()) for row in kept] == [0, 1, 2, 0, 1]
    torch.testing.assert_close(kept.square().mean((1, 2, 3)), torch.ones(5), rtol=1e-4, atol=1e-5)


def test_sizes_are_those_of_the_released_code() -> None:
    with torch.device("meta"):
        model = RelativeLocation()
    assert [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")][5:] == [
        (4096, 3 * 3 * 256),
        (4096, 8192),
        (4096, 4096),
        (8, 4096),
    ]
    whole = Batch({"image": Stream(torch.randn(2, 3, 24, 24))}, same=torch.arange(2))
    small = RelativeLocation(**TINY).eval()
    assert Outputs(small, whole).image_feat.shape == (2, 6)
    with pytest.raises(ValueError, match="needs a view with patch_pairs:PatchPairs"):
        _ = Outputs(small, whole).logits
