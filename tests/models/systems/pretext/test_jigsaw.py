"""The jigsaw network against a second implementation, in float64; AlexNet's large stem; the set of orders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_alexnet import alexnet, pool
from tests.models.second_resnet import float64
from vlpipe.models.blocks.convnets.alexnet import AlexNet, pooled_size
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.drawn_class import DrawnClass
from vlpipe.models.systems.pretext.jigsaw import Jigsaw

TINY: dict[str, Any] = {
    "image_size": 24,
    "tile_size": 8,
    "num_tiles": 4,
    "num_orders": 5,
    "widths": [4, 6, 4, 8, 6],
    "stem": "small",
    "groups": 2,
    "tile_width": 7,
    "width": 9,
    "dropout": 0.0,
}


def puzzle(num: int = 3) -> Batch:
    tiles = Stream(torch.randn(num, 4, 3, 8, 8).double(), target={"drawn": torch.tensor([4, 0, 2])})
    return Batch({"image": tiles}, same=torch.arange(num))


def standard(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    found = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True).sqrt() + 1e-6)
    return found.view_as(x)


def network(tiles: Tensor, w: dict[str, Tensor]) -> Tensor:
    each = []
    for k in range(4):
        maps = pool(alexnet(standard(tiles[:, k]), w, is_small=True)).flatten(1)
        each.append((maps @ w["tile.weight"].t() + w["tile.bias"]).clamp(min=0))
    joined = (torch.cat(each, 1) @ w["join.weight"].t() + w["join.bias"]).clamp(min=0)
    return joined @ w["order.weight"].t() + w["order.bias"]


def test_loss_and_gradients_are_those_of_a_second_implementation() -> None:
    model, batch = noisy(Jigsaw(**TINY)).double().train(), puzzle()
    with float64():
        out = Outputs(model, batch)
        term: Any = DrawnClass()(out)["drawn"]
    (term.total / term.count).backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = network(batch.stream("image").data, weights)
    torch.testing.assert_close(out.logits, logits)
    wanted = torch.stack([r.logsumexp(0) - r[d] for r, d in zip(logits, [4, 0, 2], strict=True)]).mean()
    wanted.backward()
    torch.testing.assert_close(term.total / term.count, wanted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, msg=name)


def test_the_large_stem_normalises_across_channels() -> None:
    net = noisy(AlexNet(widths=[6, 4, 4, 4, 4], stride=2, groups=2)).double()
    pixels = torch.randn(2, 3, 35, 35).double()
    own = {f"vision.{name}": p.detach() for name, p in net.named_parameters()}
    wanted = alexnet(pixels, own, is_small=False, stride=2, pad=0)
    torch.testing.assert_close(net(pixels), wanted)
    assert pool(wanted).flatten(1).shape[1] == pooled_size(net, 35)


def test_brightness_and_contrast_of_a_tile_change_nothing() -> None:
    model, batch = noisy(Jigsaw(**TINY)).double(), puzzle()
    changed = batch.stream("image").data * torch.rand(3, 4, 1, 1, 1).double().add(0.5)
    changed = changed + torch.randn(3, 4, 1, 1, 1).double()
    other = Batch({"image": Stream(changed)}, batch.same)
    torch.testing.assert_close(
        Outputs(model, batch).logits, Outputs(model, other).logits, rtol=1e-5, atol=1e-5
    )


def test_features_are_of_the_whole_picture_and_puzzles_need_their_view() -> None:
    model = noisy(Jigsaw(**TINY)).double()
    pixels = torch.randn(2, 3, 24, 24).double()
    out = Outputs(model, Batch({"image": Stream(pixels)}, same=torch.arange(2)))
    maps = alexnet(standard(pixels), dict(model.named_parameters()), is_small=True).mean((2, 3))
    torch.testing.assert_close(
        out.image_feat.double(), maps / maps.norm(dim=1, keepdim=True), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match="needs a view with jigsaw:Jigsaw"):
        _ = out.logits


def test_sizes_are_those_of_the_released_code() -> None:
    with torch.device("meta"):
        model = Jigsaw()
    assert model.tile.in_features == 3 * 3 * 256
    convs = [tuple(conv.weight.shape) for conv in model.vision.convs]
    assert convs == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    assert (model.join.in_features, model.join.out_features, model.order.out_features) == (9216, 4096, 1000)
    with pytest.raises(ValueError, match="stem large or small"):
        AlexNet(stem="big")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [8, 12, 16, 48])
def test_the_number_of_pooled_values(size: int) -> None:
    net = AlexNet(widths=[2, 2, 2, 2, 3], stem="small")
    assert pool(net(torch.randn(1, 3, size, size))).flatten(1).shape[1] == pooled_size(net, size)
    with pytest.raises(ValueError, match="pictures of 7 pixels are too small"):
        pooled_size(net, 7)
