"""Batch norms over ranks and over parts of a batch, the ResNet for small pictures, heads. As a script, one of two ranks."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import join, leave, run
from vlpipe.models import distributed
from vlpipe.models.blocks.mlp_head import MlpHead
from vlpipe.models.siamese.norms import GlobalBatchNorm, replace_norms, split_norm
from vlpipe.models.siamese.resnet import ImageResNet


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_parts_have_statistics_of_their_own(shape: tuple[int, ...], affine: bool) -> None:
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, affine=affine)
    norm = split_norm(3)(5, affine=affine)
    for tensor in (*plain.parameters(), plain.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    norm.load_state_dict(plain.state_dict())
    each = [copy.deepcopy(plain) for _ in range(3)]
    x = torch.randn(shape) * torch.arange(1, 13).view(-1, *[1] * (len(shape) - 1))
    wanted = torch.cat([one(part) for one, part in zip(each, x.chunk(3), strict=True)])
    torch.testing.assert_close(norm(x), wanted)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(one, name) for one in each]).mean(0)
        torch.testing.assert_close(getattr(norm, name), mean)
    one = copy.deepcopy(plain).eval()
    one.load_state_dict(norm.eval().state_dict())
    torch.testing.assert_close(norm(x[:11]), one(x[:11]))
    with pytest.raises(ValueError, match="11 rows cannot be cut into 3 equal parts"):
        norm.train()(x[:11])


def test_one_part_and_one_rank_are_a_batch_norm() -> None:
    plain, x = nn.BatchNorm2d(4), torch.randn(6, 4, 2, 2)
    for make in (split_norm(1), GlobalBatchNorm):
        norm = make(4)
        norm.load_state_dict(plain.state_dict())
        other = copy.deepcopy(plain)
        torch.testing.assert_close(norm(x), other(x))
        torch.testing.assert_close(norm.running_var, other.running_var)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        GlobalBatchNorm(4)(torch.randn(4))


def normed(shape: tuple[int, ...], affine: bool) -> dict[str, Any]:
    """This rank's part of values and gradients after two steps, and the statistics."""
    torch.manual_seed(0)
    norm = GlobalBatchNorm(5, affine=affine)
    found: dict[str, Any] = {}
    for step in range(2):
        whole, slope = (
            torch.randn(shape) * torch.linspace(1, 9, shape[0]).view(-1, *[1] * (len(shape) - 1)),
            torch.randn(shape),
        )
        x = whole.chunk(distributed.world_size())[distributed.rank()].clone().requires_grad_()
        y = norm(x)
        (y * slope.chunk(distributed.world_size())[distributed.rank()]).sum().backward()
        assert x.grad is not None
        found |= {f"{step}.y": distributed.gather(y), f"{step}.x.grad": distributed.gather(x.grad)}
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None
        found[f"{name}.grad"] = distributed.total(parameter.grad)
    return found | dict(norm.named_buffers())


CASES = [((12, 5), True), ((12, 5, 3, 2), True), ((12, 5), False)]


def test_two_ranks_have_the_statistics_of_all_rows(tmp_path: Path) -> None:
    run(tmp_path, 2, [__file__, tmp_path])
    one = [normed(*case) for case in CASES]
    for rank in range(2):
        for wanted, found in zip(one, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_norms_are_replaced_with_their_names_and_values() -> None:
    head = MlpHead((3, 4, 2), norm=True, last="fixed")
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    before, names = copy.deepcopy(head.state_dict()), [name for name, _ in head.named_modules()]
    replace_norms(head, split_norm(2))
    assert [name for name, _ in head.named_modules()] == names
    assert {name: value.tolist() for name, value in head.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert [type(part).__name__ for part in head] == [
        "Linear",
        "SplitBatchNorm",
        "ReLU",
        "Linear",
        "SplitBatchNorm",
    ]
    assert head[4].weight is None


def test_a_norm_that_replaces_another_has_its_settings() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, eps=0.25, momentum=0.5, affine=False), nn.BatchNorm1d(3))
    x = torch.randn(8, 3)
    wanted = copy.deepcopy(net)
    replace_norms(net, split_norm(1))
    assert [(one.eps, one.momentum, one.affine) for one in net] == [(0.25, 0.5, False), (1e-5, 0.1, True)]
    torch.testing.assert_close(net(x), wanted(x))
    torch.testing.assert_close(net[0].running_var, wanted[0].running_var)


def test_heads() -> None:
    def shapes(*widths: int, **options: object) -> list[str]:
        return [name for name, _ in MlpHead(widths, **options).named_parameters()]  # type: ignore[arg-type]

    assert shapes(3, 2) == ["0.weight", "0.bias"]
    assert shapes(3, 4, 2, last_bias=False) == ["0.weight", "0.bias", "2.weight"]
    assert shapes(3, 4, 2, norm=True, last="fixed") == ["0.weight", "1.weight", "1.bias", "3.weight"]
    scaled = MlpHead((3, 4, 2), norm=True, last="scale")
    assert [name for name, p in scaled.named_parameters() if not p.requires_grad] == ["4.bias"]
    x = torch.randn(8, 3)
    out = MlpHead((3, 4, 2), norm=True, last="fixed")(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(2), atol=1e-2, rtol=0)


def test_the_small_stem_keeps_the_size() -> None:
    make = partial(ImageResNet, depths=[1, 1, 1], width=4)
    x = torch.randn(2, 3, 32, 32)
    assert make(stem="small").maps(x).shape == (2, 64, 8, 8)
    assert make().maps(x).shape == (2, 64, 2, 2)
    assert make()(x).shape == (2, 64) == (2, make().width_out)


def main(folder: Path) -> None:
    rank = join()
    torch.save([normed(*case) for case in CASES], folder / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
