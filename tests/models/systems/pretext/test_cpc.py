"""CPC against a second implementation, written from the papers, in float64, with loops over rows, columns and steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import batch_norm, conv, float64
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.cpc import Cpc as CpcLoss
from vlpipe.models.systems.pretext.cpc import Cpc

TINY: dict[str, Any] = {
    "image_size": 20,
    "patch_size": 8,
    "stride": 4,
    "layers": [1, 2],
    "width": 2,
    "stem": "small",
    "context_width": 5,
    "context_layers": 2,
    "steps": 2,
    "skip": 1,
}
DEPTHS, GRID = [1, 2], 4


def batch(num: int = 3) -> Batch:
    return Batch({"image": Stream(torch.randn(num, 3, 20, 20))}, same=torch.arange(num))


def encoder(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    x, number = conv(x, w["vision.conv1.weight"]), 0
    for stage, depth in enumerate(DEPTHS):
        for k in range(depth):
            at, stride = f"vision.blocks.{number}", 2 if stage and k == 0 else 1
            first = batch_norm(x, w, f"{at}.bn1").clamp(min=0)
            has_shortcut = f"{at}.shortcut.weight" in w
            kept = conv(first, w[f"{at}.shortcut.weight"], stride) if has_shortcut else x
            y = batch_norm(conv(first, w[f"{at}.conv1.weight"]), w, f"{at}.bn2").clamp(min=0)
            y = batch_norm(conv(y, w[f"{at}.conv2.weight"], stride), w, f"{at}.bn3").clamp(min=0)
            x, number = conv(y, w[f"{at}.conv3.weight"]) + kept, number + 1
    return batch_norm(x, w, "vision.norm").clamp(min=0).mean((2, 3))


def context(z: list[list[Tensor]], w: dict[str, Tensor]) -> list[list[Tensor]]:
    """z[r][c]: (B, E)."""

    def matrix(name: str, *at: int) -> Tensor:
        found = w[f"context.blocks.{name}.weight"]
        return found[(slice(None), slice(None), *at)].t()

    def bias(name: str) -> Tensor:
        return w[f"context.blocks.{name}.bias"]

    for layer in range(2):
        down = [
            [(x @ matrix(f"{layer}.down", 0, 0) + bias(f"{layer}.down")).clamp(min=0) for x in r] for r in z
        ]
        along = []
        for row in down:
            found = []
            for c in range(GRID):
                near = [j for j in (-1, 0, 1) if 0 <= c + j < GRID]
                found.append(
                    sum(
                        (row[c + j] @ matrix(f"{layer}.along", 0, j + 1) for j in near),
                        bias(f"{layer}.along"),
                    )
                )
            along.append(found)
        new = []
        for r in range(GRID):
            row = []
            for c in range(GRID):
                y = along[r][c] @ matrix(f"{layer}.above", 1, 0) + bias(f"{layer}.above")
                y = y + along[r - 1][c] @ matrix(f"{layer}.above", 0, 0) if r else y
                row.append(z[r][c] + y.clamp(min=0) @ matrix(f"{layer}.up", 0, 0) + bias(f"{layer}.up"))
            new.append(row)
        z = new
    return [[x.clamp(min=0) for x in row] for row in z]


def equation_4(pixels: Tensor, w: dict[str, Tensor], scale: float) -> Tensor:
    num = len(pixels)
    corners = [(4 * r, 4 * c) for r in range(GRID) for c in range(GRID)]
    patches = torch.stack([pixels[:, :, y : y + 8, x : x + 8] for y, x in corners], 1)
    z = encoder(patches.flatten(0, 1), w).view(num, GRID, GRID, -1)
    seen = context([[z[:, r, c] for c in range(GRID)] for r in range(GRID)], w)
    target = z @ w["target.weight"].t() + w["target.bias"] if "target.weight" in w else z
    losses = []
    for k in (0, 1):
        each = []
        for image in range(num):
            for r in range(GRID - 2 - k):
                for c in range(GRID):
                    predicted = scale * (w[f"predict.{k}.weight"] @ seen[r][c][image])
                    scores = target @ predicted  # (B, R, C)
                    each.append(scores.flatten().logsumexp(0) - scores[image, r + 2 + k, c])
        losses.append(torch.stack(each).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("target_dim", [None, 6])
def test_loss_and_gradients_are_those_of_the_papers(target_dim: int | None) -> None:
    model = noisy(Cpc(**TINY, target_dim=target_dim)).train().double()
    given = batch().map(lambda value: value.double() if value.is_floating_point() else value)
    with float64():
        term: Any = CpcLoss(scale=0.3)(Outputs(model, given))["cpc"]
    (term.total / term.count).backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    wanted = equation_4(given.stream("image").data, weights, 0.3)
    wanted.backward()
    torch.testing.assert_close(term.total / term.count, wanted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, msg=name)


def test_patches_may_be_given() -> None:
    model, given = noisy(Cpc(**TINY)), batch()
    patches = Stream(model._cut(given.stream("image").data))
    assert patches.data.shape == (3, GRID * GRID, 3, 8, 8)
    assert torch.equal(patches.data[1, 5], given.stream("image").data[1, :, 4:12, 4:12])
    other = Outputs(model, Batch({"image": patches}, given.same))
    assert torch.equal(Outputs(model, given).row_predictions, other.row_predictions)


def test_a_prediction_depends_on_its_row_and_those_above_alone() -> None:
    model, given = noisy(Cpc(**TINY)), batch()
    patches = model._cut(given.stream("image").data)
    for row in range(GRID):
        changed = patches.clone()
        changed[:, GRID * row :] = torch.randn(changed[:, GRID * row :].shape)
        one, other = (
            Outputs(model, Batch({"image": Stream(x)}, given.same)).row_predictions
            for x in (patches, changed)
        )
        assert torch.equal(one[:, :, :row], other[:, :, :row])
        assert not torch.isclose(one[:, :, row:], other[:, :, row:]).all()


class Steps:
    """Stands for a model: predictions of `num` steps from the second row below on."""

    first_step = 2


def given_of(feats: Tensor, predicted: Tensor) -> Outputs:
    values = {"place_feats": feats, "row_predictions": predicted}
    return Outputs.of_features(Steps(), Batch({}, same=torch.arange(len(feats))), values)


def test_closed_forms_and_order_of_images() -> None:
    num = 2 * 5 * 3
    feats = 50 * torch.eye(num).view(2, 5, 3, num)
    predicted = torch.stack([feats.roll(-2, 1), feats.roll(-3, 1)], 1)
    found: Any = CpcLoss()(given_of(feats, predicted))
    assert float(found["cpc"].total) == pytest.approx(0, abs=1e-5)
    assert float(found["cpc_accuracy"].total / found["cpc_accuracy"].count) == 1
    nothing: Any = CpcLoss()(given_of(feats, torch.zeros_like(predicted)))
    assert float(nothing["cpc"].total) / 2 == pytest.approx(math.log(num), abs=1e-5)
    feats, predicted = torch.randn(4, 5, 3, 6), torch.randn(4, 2, 5, 3, 6)
    order = torch.tensor([2, 0, 3, 1])
    one, other = (CpcLoss()(given_of(feats[o], predicted[o]))["cpc"] for o in (torch.arange(4), order))
    torch.testing.assert_close(one.total, other.total)  # type: ignore[union-attr]


def test_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = Cpc()
    assert (model.grid, model.embed_dim, len(model.predict)) == (7, 1024, 5)
    blocks = [len([b for b in model.vision.blocks if b.conv2.out_channels == w]) for w in (64, 128, 256)]
    assert blocks == [3, 4, 23]
    with pytest.raises(ValueError, match="skip \\+ steps be below the number of their rows"):
        Cpc(**{**TINY, "steps": 3})
    with pytest.raises(ValueError, match="scale must be above 0"):
        CpcLoss(scale=0)
