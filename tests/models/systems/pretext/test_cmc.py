"""CMC against a second implementation of its loss and bank, in float64; Lab against known colours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import float64, resnet, unit
from vlpipe.models.blocks.colour.lab import Lab
from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.memory_bank import MemoryBank
from vlpipe.models.systems.pretext.cmc import Cmc

TINY: dict[str, Any] = {
    "num_rows": 9,
    "image_size": 8,
    "layers": [1, 1],
    "width": 4,
    "stem": "small",
    "projection_dim": 6,
}
TEMP, MOMENTUM, K = 0.2, 0.5, 5
# sRGB and Lab (D65) of colours, from Bruce Lindbloom's calculator, to 0.05
KNOWN = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (119, 119, 119): (50.03, 0.0, 0.0),
}


def steps(num: int = 4) -> list[Batch]:
    """Rows 0 to 8 in an order of their own each step, some of them never."""
    found = []
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        rows = torch.randperm(9, generator=draw)[:num]
        pixels = torch.randn(num, 3, 8, 8, generator=draw).double()
        streams = {"image": Stream(pixels), "row": Stream(rows)}
        found.append(Batch(streams, same=rows, step=Step(number=step)))
    return found


def second(pixels: Tensor, w: dict[str, Tensor], lab: Lab) -> list[Tensor]:
    """L and ab, each from -0.5 to 0.5, through a network of its own."""
    least, most = torch.tensor([0, -86.183, -107.857]), torch.tensor([100, 98.233, 94.478])
    x = (lab(pixels) - ((least + most) / 2)[:, None, None]) / (most - least)[:, None, None]
    found = []
    for k, channels in enumerate((x[:, :1], x[:, 1:])):
        own = {name.replace(f"vision.{k}.", "vision."): v for name, v in w.items() if f"vision.{k}." in name}
        z = resnet(channels, own, [1, 1]) @ w[f"head.{k}.0.weight"].t() + w[f"head.{k}.0.bias"]
        found.append(unit(z))
    return found


def loss_of(
    views: list[Tensor], bank: list[Tensor], chosen: Tensor, constant: list[float], kind: str
) -> Tensor:
    """Equations 2 and 12, sample by sample and candidate by candidate."""
    losses = []
    for view in (0, 1):
        for row, own in zip(chosen, views[view], strict=True):
            scores = torch.stack([bank[1 - view][k] @ own for k in row.tolist()]) / TEMP
            if kind == "softmax":
                losses.append(scores.logsumexp(0) - scores[0])
                continue
            likely, noise = scores.exp() / constant[view], K / 9
            losses.append(-torch.log(likely[0] / (likely[0] + noise + 1e-7)))
            losses += [-torch.log(noise / (p + noise + 1e-7)) for p in likely[1:]]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("kind", ["nce", "softmax"])
def test_losses_gradients_and_bank_are_those_of_the_paper(kind: str) -> None:
    model = noisy(Cmc(**TINY)).double().train()
    objective = MemoryBank(num_negatives=K, temp=TEMP, momentum=MOMENTUM, kind=kind)
    objective.bind(model)
    objective.double().train()
    bank = [objective.bank[view].clone() for view in (0, 1)]
    constant = [-1.0, -1.0]
    for batch in steps():
        model.zero_grad()
        with float64():
            out = Outputs(model, batch)
            term: Any = objective(out)["memory_bank"]
            weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
            views = second(batch.stream("image").data, weights, model.lab)
        (term.total / term.count).backward()
        torch.testing.assert_close(out.view_feats, torch.stack(views, 1))
        rows = batch.stream("row").data
        chosen = objective._candidates(rows, batch.step.number)
        assert torch.equal(chosen[:, 0], rows)
        if constant[0] < 0:  # of the first batch, for good
            for view in (0, 1):
                products = torch.einsum("bke,be->bk", bank[1 - view][chosen], views[view].detach())
                constant[view] = float((products / TEMP).exp().mean()) * 9
        wanted = loss_of(views, bank, chosen, constant, kind) / 4
        wanted.backward()
        torch.testing.assert_close(term.total.detach() / 4, wanted.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-6, atol=1e-9, msg=name)
        for view in (0, 1):
            for place, row in enumerate(rows.tolist()):
                bank[view][row] = unit(
                    MOMENTUM * bank[view][row] + (1 - MOMENTUM) * views[view][place].detach()
                )
            torch.testing.assert_close(objective.bank[view], bank[view])
    if kind == "nce":
        assert objective.constant.tolist() == pytest.approx(constant)


def test_both_networks_start_from_hes_initialisation() -> None:
    torch.manual_seed(0)
    model = Cmc(num_rows=2, image_size=32, layers=[1], width=64, stem="large", projection_dim=4)
    for net in model.vision:
        std = math.sqrt(
            2 / (64 * 7 * 7)
        )  # by the fan out of the 7 x 7 convolution, whatever the view's channels
        assert float(net.conv1.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert net.conv1.bias is None


def test_evaluation_leaves_bank_and_constant_alone() -> None:
    model = Cmc(**TINY)
    objective = MemoryBank(num_negatives=K)
    objective.bind(model)
    before = objective.eval().bank.clone()
    objective(Outputs(model.eval(), steps()[0].map(lambda v: v.float() if v.is_floating_point() else v)))
    assert torch.equal(objective.bank, before)
    assert objective.constant.tolist() == [-1, -1]
    assert {"bank", "constant"} <= set(objective.state_dict())


def test_negatives_are_of_all_rows_and_new_in_each_step() -> None:
    model = Cmc(**TINY)
    objective = MemoryBank(num_negatives=4000)
    objective.bind(model)
    first = objective._candidates(torch.tensor([3, 5]), 0)
    assert torch.equal(first, objective._candidates(torch.tensor([3, 5]), 0))
    assert not torch.equal(first, objective._candidates(torch.tensor([3, 5]), 1))
    shares = torch.bincount(first[:, 1:].flatten(), minlength=9) / 8000
    assert float((shares - 1 / 9).abs().max()) < 5 * math.sqrt(1 / 9 * 8 / 9 / 8000)


def test_closed_form_of_softmax() -> None:
    """A bank of equal vectors tells nothing: each of 1 + K is as likely."""
    model = Cmc(**TINY)
    objective = MemoryBank(num_negatives=K, kind="softmax")
    objective.bind(model)
    objective.bank.fill_(1 / math.sqrt(6))
    batch = steps()[0].map(lambda v: v.float() if v.is_floating_point() else v)
    found: Any = objective.eval()(Outputs(model.eval(), batch))
    assert float(found["memory_bank"].total.detach()) / 4 == pytest.approx(2 * math.log(1 + K), abs=1e-5)


def test_lab_of_known_colours_and_back() -> None:
    lab = Lab()
    rgb = torch.tensor(list(KNOWN), dtype=torch.float32)[:, :, None, None] / 255
    found = lab((rgb - lab.mean) / lab.std)
    torch.testing.assert_close(found[:, :, 0, 0], torch.tensor(list(KNOWN.values())), atol=0.06, rtol=0)
    every = torch.rand(20, 3, 4, 4)
    torch.testing.assert_close(lab.rgb(lab((every - lab.mean) / lab.std)), every, atol=1e-3, rtol=0)
    pixels = (every - lab.mean) / lab.std
    pixels[0] = -lab.mean / lab.std  # black: the cube root has no gradient there
    pixels.requires_grad_()
    lab(pixels).sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.isfinite().all())


def test_each_network_reads_its_channels() -> None:
    model = Cmc(**{**TINY, "views": ["l", "ab"]}).eval()
    assert [net.conv1.in_channels for net in model.vision] == [1, 2]
    twice = Cmc(**{**TINY, "views": ["l", "l"]})
    assert [net.conv1.in_channels for net in twice.vision] == [1, 1]
    assert Cmc(**TINY).streams()["row"] == {"use": "row_index:RowIndex", "num_rows": 9}
    with torch.device("meta"):
        paper = Cmc(num_rows=1)
    assert paper.embed_dim == 2 * 1024
    with pytest.raises(ValueError, match="views two of l, ab, lab"):
        Cmc(**{**TINY, "views": ["l", "rgb"]})
    with pytest.raises(ValueError, match="kind nce or"):
        MemoryBank(kind="other")
