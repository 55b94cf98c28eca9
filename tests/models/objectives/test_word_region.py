"""IPOT against linear programming's answer, and what takes part in the alignment."""

from __future__ import annotations

import itertools

import pytest
import torch

from vlpipe.models.objectives.word_region import ipot, transport_distance


def everything(num: int) -> torch.Tensor:
    return torch.ones(1, num, dtype=torch.bool)


def test_with_as_many_words_as_regions_it_is_the_best_assignment() -> None:
    """Uniform masses of equal number: the optimum is a permutation / n. IPOT with many iterations comes near it."""
    torch.manual_seed(0)
    cost = torch.rand(1, 4, 4)
    best = min(
        sum(float(cost[0, i, j]) for i, j in enumerate(order)) / 4
        for order in itertools.permutations(range(4))
    )
    plan = ipot(cost, everything(4), everything(4), beta=0.1, iterations=2000)
    assert float((cost.transpose(1, 2) * plan).sum()) == pytest.approx(best, abs=1e-3)
    torch.testing.assert_close(plan.sum(1), torch.full((1, 4), 0.25), rtol=0, atol=1e-4)
    torch.testing.assert_close(plan.sum(2), torch.full((1, 4), 0.25), rtol=0, atol=1e-4)


def test_padding_changes_no_distance() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(1, 5, 8), torch.randn(1, 7, 8)
    alone = transport_distance(x[:, :3], y[:, :4], everything(3), everything(4))
    x_mask, y_mask = torch.arange(5)[None] < 3, torch.arange(7)[None] < 4
    torch.testing.assert_close(transport_distance(x, y, x_mask, y_mask), alone, rtol=1e-5, atol=1e-6)


def test_equal_sets_have_no_distance_and_a_gradient_flows() -> None:
    torch.manual_seed(2)
    x = torch.eye(4, 8)[None].requires_grad_()
    y = torch.eye(4, 8)[None][:, [2, 0, 3, 1]]
    assert float(transport_distance(x, y, everything(4), everything(4), beta=0.1, iterations=500)) < 0.01
    far = transport_distance(x, -y, everything(4), everything(4))
    far.sum().backward()
    assert float(far) > 0.9
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
