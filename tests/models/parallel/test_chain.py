"""A model's layers in parts that pass tensors on, in one process, against the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.small_system import small_systems
from vlpipe.models.interface.objective import Term
from vlpipe.models.parallel.chain import Chain, chain_problem
from vlpipe.stages.train.build import Net

CHAINS = {name: one for name, one in small_systems().items() if one.net().model.CHAIN}


def loss_of(net: Net, batch: Any) -> Tensor:
    torch.manual_seed(3)
    values = net(batch)
    return torch.stack(
        [v.total / v.count for n, v in values.items() if isinstance(v, Term) and n in net.losses]
    ).sum()


def sample_losses(name: str) -> Net:
    """The system with the objectives that a pipeline takes."""
    net = CHAINS[name].net()
    return Net(net.model, [(1.0, "", o) for o in net.all_objectives() if o.SCOPE == "sample"]).train()


def parts(name: str, num: int) -> Iterator[tuple[Net, Chain]]:
    for part in range(num):
        net = sample_losses(name)
        yield net, Chain(net.model, part, num)


def test_all_kinds_of_transformers_are_chains() -> None:
    assert {"bert", "beit", "expert_lm", "gpt", "igpt", "mae", "uniter", "vilt", "visualbert", "vit"} == set(
        CHAINS
    )


@pytest.mark.parametrize("name", CHAINS)
def test_parts_of_a_chain_are_the_model(name: str) -> None:
    """Loss and all gradients, to 1e-6; each layer has memory in one part, whose gradient is there."""
    batch, whole = CHAINS[name].batch(0), sample_losses(name)
    wanted = loss_of(whole, batch)
    wanted.backward()  # type: ignore[no-untyped-call]
    passed: list[tuple[Tensor, Tensor | None]] = []
    nets = list(parts(name, 2))
    given: Tensor | None = None
    for net, chain in nets:
        entry, exit_ = chain.probe(lambda net=net: net(batch))  # type: ignore[misc]
        assert (entry is None) == chain.is_first
        out = chain.run(lambda net=net: loss_of(net, batch), given)  # type: ignore[misc]
        assert chain.is_last or (out.shape, out.dtype) == (exit_.shape, exit_.dtype)
        passed.append((out, given))
        given = out.detach().requires_grad_()
        assert entry is None or (entry.shape, entry.dtype) == (passed[-2][0].shape, passed[-2][0].dtype)
    assert float(passed[-1][0]) == pytest.approx(float(wanted), rel=1e-6)
    gradient: Tensor | None = None
    for out, own in reversed(passed):
        out.backward(gradient)  # type: ignore[no-untyped-call]
        gradient = None if own is None else own.grad
    for key, p in whole.named_parameters():
        found = [dict(net.named_parameters())[key] for net, _ in nets]
        assert sum(not one.is_meta for one in found) == (
            2 if nets[0][1].part_of(key.removeprefix("model.")) is None else 1
        )
        grads = [one.grad for one in found if one.grad is not None]
        assert bool(grads) == (p.grad is not None), key
        if p.grad is not None:
            torch.testing.assert_close(sum(grads), p.grad, rtol=1e-5, atol=1e-7, msg=key)


def test_a_second_pass_of_a_part_is_an_error() -> None:
    (_, _), (net, chain) = parts("gpt", 2)
    batch, given = CHAINS["gpt"].batch(0), torch.zeros(4, 12, 32)

    def twice() -> None:
        net(batch)
        net(batch)

    with pytest.raises(ValueError, match="passed through more than once per step"):
        chain.run(twice, given)


def test_what_is_no_chain_says_so() -> None:
    assert "Clip is no single chain of layers" in (
        chain_problem(small_systems()["clip"].net().model, 2) or ""
    )
    assert (
        chain_problem(CHAINS["gpt"].net().model, 3)
        == "mesh: pipeline: 3 workers, but the model has 2 layer(s)"
    )
    assert chain_problem(CHAINS["gpt"].net().model, 2) is None
