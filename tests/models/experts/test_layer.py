"""The layer of experts against a loop over tokens; on two ranks against one process."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.ranks import join, leave, run
from vlpipe.models.experts.layer import Experts, Use
from vlpipe.models.experts.routing import places
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.experts.balance import ExpertBalance
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.text.expert_lm import ExpertLm

WIDTH, HIDDEN, NUM = 6, 10, 4
ROUTERS: list[dict[str, Any]] = [
    {"kind": "switch", "jitter": 0.0},
    {"kind": "gshard"},
    {"kind": "noisy_top_k", "k": 3},
]


def layer(router: dict[str, Any], factor: tuple[float, float] | None = (1.25, 2.0), **more: Any) -> Experts:
    torch.manual_seed(0)
    made = Experts(WIDTH, HIDDEN, NUM, router=router, capacity_factor=factor, init_scale=1.0, **more)
    with torch.no_grad():
        for p in made.parameters():
            if p.shape[-2:] == (1, HIDDEN) or p.shape[-2:] == (1, WIDTH):
                p.normal_()
    return made


def used(one: Experts) -> Use:
    assert one.latest is not None
    return one.latest


def rows(num: int = 5, length: int = 8) -> Tensor:
    return torch.randn(num, length, WIDTH, generator=torch.Generator().manual_seed(1))


def loop(of: Experts, x: Tensor, room: int) -> tuple[Tensor, int]:
    """Token by token: the gated sum of what its experts answer, and the number of dropped choices."""
    tokens = x.flatten(0, 1)
    routing = of.router(tokens)
    place = places(routing, NUM)
    answers, dropped = [], 0
    for n, token in enumerate(tokens):
        total = torch.zeros(WIDTH)
        for choice in range(routing.experts.shape[1]):
            if not routing.wanted[n, choice]:
                continue
            if place[n, choice] >= room:
                dropped += 1
                continue
            e = int(routing.experts[n, choice])
            inner = F.gelu(token @ of.up[e] + of.up_bias[e, 0])
            total = total + routing.gates[n, choice] * (inner @ of.down[e] + of.down_bias[e, 0])
        answers.append(total)
    return torch.stack(answers).view_as(x), dropped


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r["kind"])
@pytest.mark.parametrize("factor", [(1.25, 0.6), (1.25, 2.0), None], ids=str)
def test_outputs_and_gradients_are_those_of_a_loop(
    router: dict[str, Any], factor: tuple[float, float] | None
) -> None:
    one = layer(router, factor).eval()
    two = copy.deepcopy(one)
    x, y = rows().requires_grad_(), rows().requires_grad_()
    choices = one.router.choices
    room = 10_000 if factor is None else max(1, -(-round(factor[1] * choices * 40) // NUM))
    expected, dropped = loop(two, y, room)
    found = one(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert used(one).dropped.item() == pytest.approx(dropped / (40 * choices))
    assert (dropped > 0) == (factor == (1.25, 0.6))
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        if p.grad is not None or q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_a_token_without_room_passes_the_layer_by() -> None:
    one = layer({"kind": "switch", "jitter": 0.0}, (0.1, 0.1)).eval()
    with torch.no_grad():
        one.router.weight.zero_()
        one.router.weight[:, 1] = 1  # all tokens with a positive sum to expert 1
    x = rows().abs()
    found = one(x).flatten(0, 1)
    assert used(one).busiest.item() == 1
    assert used(one).dropped.item() == pytest.approx(39 / 40)
    assert bool(found[0].abs().sum() > 0)
    assert torch.equal(found[1:], torch.zeros_like(found[1:]))


def test_padding_takes_nobodys_place() -> None:
    one = layer({"kind": "gshard"}, (0.7, 0.7)).eval()
    x = rows()
    mask = torch.ones(5, 8, dtype=torch.bool)
    mask[:, 5:] = False
    masked = one(x, mask)
    changed = one(torch.where(mask[..., None], x, torch.full_like(x, 7.0)), mask)
    assert torch.equal(masked[mask], changed[mask])
    assert torch.equal(masked[~mask], torch.zeros_like(masked[~mask]))


def test_routing_is_float32_under_autocast() -> None:
    one = layer({"kind": "switch", "jitter": 0.0}).eval()
    x = rows()
    with torch.autocast("cpu", torch.bfloat16):
        found = one(x.bfloat16())
        routing = one.router(x.bfloat16().flatten(0, 1))
    assert found.dtype == torch.bfloat16
    assert routing.gates.dtype == torch.float32
    assert routing.losses["balance"].dtype == torch.float32


def test_matrices_start_with_a_tenth_of_the_variance() -> None:
    one = Experts(400, 400, 2)
    assert one.up.std().item() == pytest.approx((0.1 / 400) ** 0.5 * 0.8796, rel=0.02)  # of a normal cut at 2
    with pytest.raises(ValueError, match="router: no kind 'best'; there are switch, gshard, noisy_top_k"):
        Experts(4, 4, 2, router={"kind": "best"})


def lm(**more: Any) -> tuple[ExpertLm, Outputs]:
    torch.manual_seed(0)
    model = ExpertLm(vocab_size=20, experts=4, width=16, layers=4, heads=2, max_text_length=10, **more)
    ids = torch.randint(1, 20, (6, 10), generator=torch.Generator().manual_seed(2))
    batch = Batch({"text": Stream(ids, torch.ones(6, 10, dtype=torch.bool))}, same=torch.arange(6))
    return model, Outputs(model, batch)


def test_the_balance_of_all_layers_is_a_loss() -> None:
    model, out = lm(router={"kind": "switch", "jitter": 0.0})
    balance = ExpertBalance()
    balance.bind(model)
    with pytest.raises(ValueError, match="put it after the objective that runs the layers"):
        balance(out)
    Lm(label_smoothing=0.0)(out)
    found = balance(out)
    layers = [one.experts for one in model.layers if one.experts is not None]
    assert len(layers) == 2  # every second of four
    mean = sum(used(one).loss for one in layers) / 2
    torch.testing.assert_close(found["balance"].total, mean)  # type: ignore[union-attr]
    summed = ExpertBalance(over_layers="sum")(out)["balance"]
    torch.testing.assert_close(summed.total, 2 * mean)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="over_layers must be mean or sum, got 'max'"):
        ExpertBalance(over_layers="max")  # type: ignore[arg-type]
    found["balance"].total.backward()  # type: ignore[union-attr]
    assert all(one.router.weight.grad is not None for one in layers)
    with pytest.raises(ValueError, match="the model has no layer of experts"):
        ExpertBalance().bind(ExpertLm(vocab_size=20, experts=1, width=16, layers=2, heads=2))


def test_one_expert_is_an_ordinary_network_with_the_work_of_one() -> None:
    dense = ExpertLm(vocab_size=20, experts=1, width=16, layers=2, heads=2)
    many = ExpertLm(vocab_size=20, experts=8, width=16, layers=2, heads=2)
    own = sum(p.numel() for p in dense.parameters())
    assert sum(p.numel() for p in many.parameters()) == own + 7 * (2 * 16 * 64 + 64 + 16) + 16 * 8


def test_a_later_word_changes_no_earlier_one() -> None:
    model, out = lm(router={"kind": "switch", "jitter": 0.0}, capacity_factor=(100.0, 100.0))
    ids = out.stream("text").data.clone()
    ids[:, 7:] = 3
    batch = Batch({"text": Stream(ids, torch.ones(6, 10, dtype=torch.bool))}, same=torch.arange(6))
    other = Outputs(model, batch).decoder_hidden
    torch.testing.assert_close(other[:, :7], out.decoder_hidden[:, :7])


def test_words_one_by_one_are_those_of_the_whole_text() -> None:
    model, out = lm(router={"kind": "switch", "jitter": 0.0}, capacity_factor=(100.0, 100.0))
    model.eval()
    ids = out.stream("text").data
    cache = model.start_alone(6, 10)
    with torch.inference_mode():
        steps = [model.step_text(ids[:, at : at + 1], cache) for at in range(10)]
        torch.testing.assert_close(torch.cat(steps, 1), out.decoder_hidden, atol=1e-5, rtol=1e-5)


def own_rows(rank: int) -> Tensor:
    """The second rank has fewer tokens."""
    return rows(6)[3 * rank : 3 * rank + 3, : 8 - 2 * rank]


def on_a_rank(folder: Path) -> None:
    """Writes the outputs and the averaged gradients of experts that two ranks share."""
    rank = join()
    one = layer({"kind": "gshard"}).eval()
    assert dist.group.WORLD is not None
    one.spread(dist.group.WORLD)
    x = own_rows(rank).requires_grad_()
    found = one(x)
    found.square().sum().backward()
    grads = {}
    for name, p in one.named_parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            grads[name] = p.grad / 2
    torch.save({"out": found.detach(), "x": x.grad, "grads": grads}, folder / f"{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_ranks_share_the_experts(tmp_path: Path) -> None:
    run(tmp_path, 2, [__file__, tmp_path])
    shared = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = layer({"kind": "gshard"}).eval()
    for rank in range(2):  # each rank has queues of its own
        x = own_rows(rank).requires_grad_()
        found = alone(x)
        torch.testing.assert_close(shared[rank]["out"], found.detach(), atol=1e-6, rtol=1e-5)
        (found.square().sum() / 2).backward()
        torch.testing.assert_close(shared[rank]["x"], 2 * x.grad, atol=1e-5, rtol=1e-5)  # type: ignore[operator]
    for name, p in alone.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(shared[0]["grads"][name], p.grad, atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(ValueError, match="need a capacity_factor"):
        layer({"kind": "gshard"}, None).spread(None)  # type: ignore[arg-type]


if __name__ == "__main__":
    on_a_rank(Path(sys.argv[1]))
