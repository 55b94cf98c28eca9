"""SimCLR against a second implementation, written from the paper: its algorithm 1 and equation 1, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import batch_norm, float64, resnet, unit
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.nt_xent import NtXent
from vlpipe.models.siamese.norms import GlobalBatchNorm
from vlpipe.models.systems.images.simclr import SimClr

TINY: dict[str, Any] = {"image_size": 16, "layers": [1, 2], "width": 4, "stem": "small", "projection_dim": 6}


def two_views(num: int = 5) -> Batch:
    streams = {name: Stream(torch.randn(num, 3, 16, 16)) for name in ("image", "second")}
    return Batch(streams, same=torch.arange(num))


def equation_1(z: Tensor, temp: float) -> Tensor:
    """The mean of both directions over all pairs of views 2 k - 1 and 2 k; z: (2 N, D) in that order."""
    num = len(z)
    similarity = [[z[i] @ z[k] / (z[i].norm() * z[k].norm()) for k in range(num)] for i in range(num)]

    def loss(i: int, j: int) -> Tensor:
        others = [torch.exp(similarity[i][k] / temp) for k in range(num) if k != i]
        return -torch.log(torch.exp(similarity[i][j] / temp) / torch.stack(others).sum())

    pairs = [loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(num // 2)]
    return torch.stack(pairs).sum() / num


def head(x: Tensor, w: dict[str, Tensor], norm: bool) -> Tensor:
    if not norm:
        return (x @ w["head.0.weight"].t() + w["head.0.bias"]).clamp(min=0) @ w["head.2.weight"].t()
    hidden = batch_norm(x @ w["head.0.weight"].t(), w, "head.1").clamp(min=0)
    return batch_norm(hidden @ w["head.3.weight"].t(), w, "head.4")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("temp", [0.1, 0.5])
def test_loss_and_gradient_are_those_of_the_paper(norm: bool, temp: float) -> None:
    model = noisy(SimClr(**TINY, head_norm=norm)).train().double()
    batch = two_views().map(lambda value: value.double() if value.is_floating_point() else value)
    out = Outputs(model, batch)
    with float64():
        term = NtXent(temp=temp)(out)["nt_xent"]
    (term.total / term.count).backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    both = torch.cat([batch.stream(name).data for name in ("image", "second")])
    z = head(resnet(both, weights, [1, 2]), weights, norm)
    torch.testing.assert_close(out.view_feats, unit(z).unflatten(0, (2, -1)).transpose(0, 1))
    wanted = equation_1(torch.stack([z[:5], z[5:]], dim=1).flatten(0, 1), temp)
    wanted.backward()
    torch.testing.assert_close(term.total / term.count, wanted)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, weights[name].grad, msg=name)
        else:
            assert (name, norm) == ("head.4.bias", True)


def given(z: Tensor) -> Outputs:
    """Outputs of these views (B, 2, E)."""
    return Outputs.of_features(None, Batch({}, same=torch.arange(len(z))), {"view_feats": z})


@pytest.mark.parametrize("num", [1, 4, 9])
def test_closed_forms(num: int) -> None:
    """All views equal: each of the 2 N - 1 others is as likely. Pairs equal or opposite, and orthogonal to all others."""
    temp = 0.3
    equal = torch.ones(num, 2, 4) / 2
    found: Any = NtXent(temp=temp)(given(equal))
    assert float(found["nt_xent"].total / found["nt_xent"].count) == pytest.approx(
        math.log(2 * num - 1), abs=1e-6
    )
    apart = torch.eye(num)[:, None].expand(-1, 2, -1)
    found = NtXent(temp=temp)(given(apart))
    wanted = math.log(math.exp(1 / temp) + 2 * num - 2) - 1 / temp
    assert float(found["nt_xent"].total / found["nt_xent"].count) == pytest.approx(wanted, abs=1e-6)
    assert float(found["nt_xent_accuracy"].total) == num
    opposite = torch.stack([torch.eye(num), -torch.eye(num)], dim=1)
    found = NtXent(temp=temp)(given(opposite))
    wanted = math.log(math.exp(-1 / temp) + 2 * num - 2) + 1 / temp
    assert float(found["nt_xent"].total / found["nt_xent"].count) == pytest.approx(wanted, abs=1e-5)
    assert float(found["nt_xent_accuracy"].total) == (num if num == 1 else 0)


def test_the_gradient_of_one_view_by_hand() -> None:
    """d loss / d z_i = (sum of p_k z_k - z_partner) / temp, from the row of i and, mirrored, from all others."""
    z = torch.nn.functional.normalize(torch.randn(3, 2, 5), dim=-1).requires_grad_()
    term: Any = NtXent(temp=0.5)(given(z))["nt_xent"]
    (2 * term.total).backward()
    flat = z.detach().transpose(0, 1).flatten(0, 1)
    logits = flat @ flat.t() / 0.5
    logits.fill_diagonal_(-torch.inf)
    errors = logits.softmax(1) - torch.eye(6).roll(3, dims=1)
    wanted = ((errors + errors.t()) @ flat / 0.5).unflatten(0, (2, 3)).transpose(0, 1)
    torch.testing.assert_close(z.grad, wanted)


def test_both_views_are_one_batch_of_norms_that_count_all_ranks() -> None:
    model, batch = SimClr(**TINY).train(), two_views()
    assert all(isinstance(m, GlobalBatchNorm) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert sum(isinstance(m, GlobalBatchNorm) for m in model.modules()) == 12
    alone = Outputs(model, Batch({**batch.streams, "second": batch.stream("image")}, batch.same)).view_feats
    assert not torch.allclose(Outputs(model, batch).view_feats[:, 0], alone[:, 0])


def test_features_are_those_before_the_head() -> None:
    model, batch = noisy(SimClr(**TINY)), two_views()
    only = Batch({"image": batch.stream("image")}, batch.same)
    found = Outputs(model, only).image_feat
    assert found.shape == (5, model.embed_dim) == (5, 32)
    torch.testing.assert_close(found, unit(model.vision.maps(batch.stream("image").data).mean((2, 3))))
    before = found.clone()
    model.head[0].weight.data.zero_()
    assert torch.equal(Outputs(model, only).image_feat, before)


def test_sizes_are_resnet_50s() -> None:
    with torch.device("meta"):
        model = SimClr()
    assert (model.embed_dim, sum(p.numel() for p in model.vision.parameters())) == (2048, 23_508_032)
    assert sum(p.numel() for p in model.head.parameters()) == 2048 * 2048 + 2048 + 2048 * 128
    assert {name: spec["size"] for name, spec in model.streams().items()} == {"image": 224, "second": 224}
    with pytest.raises(ValueError, match="stem is large or small, got 'big'"):
        SimClr(stem="big")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temp must be above 0"):
        NtXent(temp=0)
