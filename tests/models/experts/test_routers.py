"""Routers against loops written from the papers, against transformers, and at points where the value is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.switch_transformers.configuration_switch_transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersTop1Router,
    load_balancing_loss_func,
)

from vlpipe.models.experts.routers import GShard, NoisyTopK, Router, Switch
from vlpipe.models.experts.routing import Routing, capacity, places

WIDTH, NUM, TOKENS = 6, 4, 40


def filled(router: Router) -> Router:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in router.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return router


def tokens(num: int = TOKENS) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(1))


def test_switch_is_that_of_transformers() -> None:
    router = filled(Switch(WIDTH, NUM, jitter=0.0))
    config = SwitchTransformersConfig(
        d_model=WIDTH, num_experts=NUM, expert_capacity=7, router_jitter_noise=0.0
    )
    theirs = SwitchTransformersTop1Router(config)
    with torch.no_grad():
        theirs.classifier.weight.copy_(router.weight.T)
    x = tokens()
    chosen, gate, logits = theirs(x[None])
    found = router(x)
    torch.testing.assert_close(found.gates, gate[0], atol=1e-6, rtol=0)
    place = places(found, NUM)
    kept = torch.zeros(TOKENS, NUM).scatter(1, found.experts, (place < 7).float())
    assert torch.equal(kept.long(), chosen[0])
    expected = load_balancing_loss_func(logits.softmax(-1), logits.argmax(-1))
    torch.testing.assert_close(found.losses["balance"], expected, atol=1e-6, rtol=0)


def test_switch_is_balanced_at_one() -> None:
    router = Switch(NUM, NUM, jitter=0.0)
    with torch.no_grad():
        router.weight.copy_(10 * torch.eye(NUM))
    x = torch.eye(NUM).repeat(5, 1)
    found = router(x)
    assert found.losses["balance"].item() == pytest.approx(1, abs=1e-4)
    assert found.share.tolist() == pytest.approx([0.25] * 4)
    one = router(torch.eye(NUM)[:1].repeat(20, 1))  # all tokens to one expert
    assert one.losses["balance"].item() == pytest.approx(NUM, rel=1e-3)


def test_jitter_is_for_training_alone() -> None:
    router = filled(Switch(WIDTH, NUM, jitter=0.5))
    x = tokens()
    router.eval()
    assert torch.equal(router(x).gates, router(x).gates)
    router.train()
    assert not torch.equal(router(x).gates, router(x).gates)


def gshard_loop(x: Tensor, weight: Tensor) -> tuple[list[list[int]], list[list[float]], float]:
    probs = (x @ weight).softmax(-1)
    experts, gates = [], []
    first_counts, mean_gates = [0.0] * NUM, [0.0] * NUM
    for p in probs.tolist():
        order = sorted(range(NUM), key=lambda e: -p[e])[:2]
        total = p[order[0]] + p[order[1]]
        experts.append(order)
        gates.append([p[e] / total for e in order])
        first_counts[order[0]] += 1 / len(x)
        for e in range(NUM):
            mean_gates[e] += p[e] / len(x)
    return experts, gates, sum(c * m for c, m in zip(first_counts, mean_gates, strict=True)) / NUM


def test_gshard_is_algorithm_1() -> None:
    router = filled(GShard(WIDTH, NUM)).eval()
    x = tokens()
    experts, gates, loss = gshard_loop(x, router.weight.detach())
    found = router(x)
    assert found.experts.tolist() == experts
    torch.testing.assert_close(found.gates, torch.tensor(gates), atol=1e-6, rtol=0)
    assert found.losses["balance"].item() == pytest.approx(loss, abs=1e-6)
    assert bool(found.wanted.all())


def test_the_second_expert_is_asked_as_often_as_twice_its_gate() -> None:
    router = filled(GShard(WIDTH, NUM)).train()
    x = tokens(8)
    torch.manual_seed(0)
    asked = torch.stack([router(x).wanted[:, 1] for _ in range(4000)]).float().mean(0)
    chance = (2 * router(x).gates[:, 1]).clamp(max=1).detach()
    error = 4 * (chance * (1 - chance) / 4000).sqrt() + 1e-6  # four standard errors
    assert bool(((asked - chance).abs() <= error).all()), (asked, chance)
    assert bool(router(x).wanted[:, 0].all())
    gumbel = filled(GShard(WIDTH, NUM, gumbel=True)).train()
    drawn = torch.stack([gumbel(x).experts[:, 1] for _ in range(200)])
    assert bool(gumbel(x).wanted.all())
    assert len(drawn.unique(dim=0)) > 1
    assert bool((drawn != gumbel(x).experts[:, 0]).all())


def test_gshard_is_balanced_at_one_over_e_squared() -> None:
    router = GShard(NUM, NUM)
    with torch.no_grad():
        router.weight.copy_(20 * torch.eye(NUM))
    found = router(torch.eye(NUM).repeat(5, 1))
    assert found.losses["balance"].item() == pytest.approx(1 / NUM**2, rel=1e-4)


def shazeer_loop(x: Tensor, router: NoisyTopK, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates (N, E), and P (N, E), expert by expert as the paper writes them (equations 3 to 5 and 8 to 9)."""
    k = router.choices
    clean, scale = x @ router.weight, torch.nn.functional.softplus(x @ router.noise)
    noisy = clean + noise * scale
    gates, chance = torch.zeros_like(clean), torch.zeros_like(clean)
    for n in range(len(x)):
        row = noisy[n]
        kept = row.argsort(descending=True)[:k]
        gates[n, kept] = row[kept].softmax(0)
        for e in range(NUM):
            others = torch.cat([row[:e], row[e + 1 :]]).sort(descending=True).values
            z = (clean[n, e] - others[k - 1]) / scale[n, e]
            chance[n, e] = 0.5 * (1 + math.erf(z.item() / math.sqrt(2)))
    return gates, chance, noisy


def cv2(x: Tensor) -> float:
    mean = x.mean()
    return float(((x - mean) ** 2).mean() / mean**2)


def load_loss(x: Tensor, router: NoisyTopK, noise: Tensor) -> Tensor:
    """Equations 8 to 11 with all gradients, those of the k-th highest of the others included."""
    clean, scale = x @ router.weight, torch.nn.functional.softplus(x @ router.noise)
    noisy = clean + noise * scale
    load = []
    for e in range(NUM):
        others = torch.cat([noisy[:, :e], noisy[:, e + 1 :]], 1).sort(dim=1, descending=True).values
        z = (clean[:, e] - others[:, router.choices - 1]) / scale[:, e]
        load.append((0.5 * (1 + torch.erf(z / math.sqrt(2)))).sum())
    loads = torch.stack(load)
    return (loads - loads.mean()).square().mean() / loads.mean().square()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_noisy_top_k_is_shazeers(k: int) -> None:
    router = filled(NoisyTopK(WIDTH, NUM, k=k)).train()
    assert isinstance(router, NoisyTopK)
    x = tokens()
    torch.manual_seed(5)
    found = router(x)
    torch.manual_seed(5)
    with torch.no_grad():
        gates, chance, _ = shazeer_loop(x, router, torch.randn(TOKENS, NUM))
    ours = torch.zeros(TOKENS, NUM).scatter(1, found.experts, found.gates.detach())
    torch.testing.assert_close(ours, gates, atol=1e-6, rtol=0)
    assert found.losses["importance"].item() == pytest.approx(cv2(gates.sum(0)), abs=1e-5)
    assert found.losses["load"].item() == pytest.approx(cv2(chance.sum(0)), abs=1e-5)
    ours_grads = torch.autograd.grad(found.losses["load"], [router.weight, router.noise])
    torch.manual_seed(5)
    wanted = torch.autograd.grad(
        load_loss(x, router, torch.randn(TOKENS, NUM)), [router.weight, router.noise]
    )
    for own, other in zip(ours_grads, wanted, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-4)


def test_no_noise_in_evaluation_and_the_sample_variance_on_request() -> None:
    router = filled(NoisyTopK(WIDTH, NUM, k=2)).eval()
    x = tokens()
    assert set(router(x).losses) == {"importance"}
    assert torch.equal(router(x).gates, router(x).gates)
    other = filled(NoisyTopK(WIDTH, NUM, k=2, unbiased=True)).eval()
    ratio = other(x).losses["importance"] / router(x).losses["importance"]
    assert ratio.item() == pytest.approx(NUM / (NUM - 1))


@pytest.mark.parametrize("router", [Switch(WIDTH, NUM, 0.0), GShard(WIDTH, NUM), NoisyTopK(WIDTH, NUM)])
def test_padding_changes_nothing(router: Router) -> None:
    router = filled(router).eval()
    x = tokens()
    padded = torch.cat([x, 100 * torch.randn(9, WIDTH)])
    valid = torch.arange(len(padded)) < TOKENS
    one, two = router(x), router(padded, valid)
    assert torch.equal(two.wanted[TOKENS:], torch.zeros_like(two.wanted[TOKENS:]))
    torch.testing.assert_close(two.gates[:TOKENS], one.gates)
    torch.testing.assert_close(two.share, one.share)
    for name, loss in one.losses.items():
        torch.testing.assert_close(two.losses[name], loss)


def test_padding_has_no_load_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    router, x, noise = filled(NoisyTopK(WIDTH, NUM)).train(), tokens(), torch.randn(TOKENS, NUM)
    monkeypatch.setattr(torch, "randn_like", lambda clean: noise[: len(clean)])
    alone = router(x[:30])
    padded = router(x, torch.arange(TOKENS) < 30)
    for name in ("importance", "load"):
        torch.testing.assert_close(padded.losses[name], alone.losses[name])


def test_queues_are_filled_by_first_choices_first() -> None:
    experts = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 2]])
    wanted = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    found = places(Routing(experts, torch.ones(4, 2), wanted, torch.zeros(3)), 3)
    assert found.tolist() == [[0, 1], [0, 3], [1, -1], [2, 0]]
    assert [capacity(40, 4, 1, 1.25), capacity(41, 4, 2, 1.0), capacity(1, 8, 1, 1.0)] == [13, 21, 1]


def test_wrong_sizes_are_errors() -> None:
    with pytest.raises(ValueError, match="num_experts must be at least 2, got 1"):
        GShard(WIDTH, 1)
    with pytest.raises(ValueError, match="k must be from 1 to num_experts = 4, got 5"):
        NoisyTopK(WIDTH, NUM, k=5)
