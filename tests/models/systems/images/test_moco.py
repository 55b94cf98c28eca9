"""MoCo against a second implementation, written from the paper's algorithm 1, in float64; shuffled batch norm."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import float64, resnet, unit
from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images import moco as objectives
from vlpipe.models.systems.images.moco import Moco
from vlpipe.models.teachers import Ema
from vlpipe.stages.train.build import Net

TINY: dict[str, Any] = {"image_size": 8, "layers": [1, 1], "width": 4, "stem": "small", "projection_dim": 6}
TEMP, MOMENTUM, LR = 0.07, 0.9, 0.05


def two_views(step: int, num: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(100 + step)
    streams = {
        name: Stream(torch.randn(num, 3, 8, 8, generator=draw).double()) for name in ("image", "second")
    }
    return Batch(streams, same=torch.arange(num) + num * step, step=Step(number=step))


def network(pixels: Tensor, w: dict[str, Tensor], head: str, parts: int = 1) -> Tensor:
    x = resnet(pixels, w, [1, 1], parts) @ w["head.0.weight"].t() + w["head.0.bias"]
    if head == "mlp":
        x = x.clamp(min=0) @ w["head.2.weight"].t() + w["head.2.bias"]
    return unit(x)


def algorithm_1(start: dict[str, Tensor], num_steps: int, size: int, head: str) -> list[tuple[Any, ...]]:
    """(loss, gradient, queue, weights of the keys' network) of each step, by plain SGD."""
    q = {name: value.clone().requires_grad_() for name, value in start.items()}
    k = {name: value.clone() for name, value in start.items()}
    queue: deque[Tensor] = deque(maxlen=size)
    found = []
    for step in range(num_steps):
        batch = two_views(step)
        query = network(batch.stream("image").data, q, head)
        keys = network(batch.stream("second").data, k, head)
        used = {name: value.clone() for name, value in k.items()}
        losses = []
        for own, positive in zip(query, keys, strict=True):
            scores = torch.stack([own @ positive, *(own @ other for other in queue)]) / TEMP
            losses.append(scores.logsumexp(0) - scores[0])
        loss = torch.stack(losses).mean()
        grads = torch.autograd.grad(loss, list(q.values()), allow_unused=True)
        with torch.no_grad():
            for value, grad in zip(q.values(), grads, strict=True):
                value -= LR * (0 if grad is None else grad)
            for name in k:
                k[name] = MOMENTUM * k[name] + (1 - MOMENTUM) * q[name]
        queue.extend(keys)
        found.append((loss.detach(), dict(zip(q, grads, strict=True)), list(queue), used))
    return found


@pytest.mark.parametrize(("head", "size"), [("linear", 16), ("mlp", 16), ("linear", 4)])
def test_losses_gradients_queue_and_teacher_are_those_of_algorithm_1(head: str, size: int) -> None:
    """Four steps of 6 rows, with queues of 16, which wraps within a batch, and of 4, which a batch fills more than once."""
    model = noisy(Moco(**TINY, head=head)).double()  # type: ignore[arg-type]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = objectives.Moco(queue_size=size, temp=TEMP)
    net = Net(model, [(1.0, "", objective)], {"ema": Ema(momentum=MOMENTUM)}).train()
    objective.queue.double()
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for step, (loss, grads, queue, keys) in enumerate(algorithm_1(start, 4, size, head)):
        with float64():
            term = net(two_views(step))["moco"]
        (term.total / term.count).backward()
        assert float(term.total.detach() / term.count) == pytest.approx(float(loss), rel=1e-9, abs=1e-12)
        for name, p in model.named_parameters():
            wanted = torch.zeros_like(p) if grads[name] is None else grads[name]
            torch.testing.assert_close(p.grad, wanted, rtol=1e-7, atol=1e-9, msg=f"step {step}, {name}")
        for name, p in net.teachers["ema"].copy.named_parameters():
            torch.testing.assert_close(p, keys[name], msg=f"step {step}, {name}")
        (rows,), ids = objective.queue.rows()
        oldest = int(objective.queue.num_pushed) % size if len(rows) == size else 0
        torch.testing.assert_close(rows.roll(-oldest, 0), torch.stack(queue))
        last = list(range(6 * (step + 1)))[-size:]
        assert ids.roll(-oldest).tolist() == last
        optimiser.step()
        optimiser.zero_grad()


def given(query: Tensor, key: Tensor) -> Outputs:
    batch = Batch({}, same=torch.arange(len(query)))
    return Outputs.of_features(None, batch, {"query": query, "ema.key": key})


def bound(size: int, **options: Any) -> objectives.Moco:
    found = objectives.Moco(queue_size=size, **options)
    found.bind(Moco(**TINY))
    return found.train()


def test_closed_forms() -> None:
    """Without a queue there is nothing to confuse; of K equal keys each is as likely, of K orthogonal ones less."""
    temp, same = 0.3, torch.eye(6)[:1].expand(4, -1)
    objective = bound(4, temp=temp)
    first: Any = objective(given(same, same))
    assert float(first["moco"].total) == 0
    assert float(first["moco_accuracy"].total) == 4
    equal: Any = objective(given(same, same))
    assert float(equal["moco"].total) / 4 == pytest.approx(math.log(5), abs=1e-6)
    assert float(equal["moco_accuracy"].total) == 0  # the right key is as near as the others
    other = torch.eye(6)[1:2].expand(4, -1)
    apart: Any = objective(given(other, other))
    wanted = math.log(math.exp(1 / temp) + 4) - 1 / temp
    assert float(apart["moco"].total) / 4 == pytest.approx(wanted, abs=1e-6)
    assert float(apart["moco_accuracy"].total) == 4


def test_the_queue_may_begin_full_of_random_vectors() -> None:
    objective = bound(50, random_start=True)
    (rows,), ids = objective.queue.rows()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50))
    assert set(ids.tolist()) == {-1}
    x = torch.nn.functional.normalize(torch.randn(3, 6), dim=1)
    scores = torch.cat([torch.ones(3, 1), x @ rows.t()], dim=1) / 0.07
    wanted = (scores.logsumexp(1) - scores[:, 0]).sum()
    found: Any = objective(given(x, x))
    torch.testing.assert_close(found["moco"].total, wanted)
    assert objective.queue.rows()[1].tolist() == [0, 1, 2, *[-1] * 47]


def test_evaluation_leaves_the_queue_alone() -> None:
    objective = bound(8).eval()
    objective(given(torch.eye(6)[:4], torch.eye(6)[:4]))
    assert int(objective.queue.num_pushed) == 0
    with pytest.raises(ValueError, match="temp must be above 0 and queue_size at least 1"):
        objectives.Moco(queue_size=0)


def passed(model: Moco) -> list[Tensor]:
    """What the first convolution gets, from now on."""
    found: list[Tensor] = []
    model.vision.conv1.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    return found


def test_keys_are_normed_beside_other_rows_than_their_queries() -> None:
    """Two parts of a batch are two ranks: in order for queries, in an order of the step's own for keys."""
    model = noisy(Moco(**TINY, norm_parts=2)).double().train()
    weights, orders = dict(model.named_parameters()), set()
    for step in range(8):
        batch, seen = two_views(step, num=8), passed(model)
        out = Outputs(model, batch)
        first, second = (batch.stream(name).data for name in ("image", "second"))
        with float64():
            torch.testing.assert_close(out.query, network(first, weights, "linear", parts=2))
            keys = out.key
        assert torch.equal(seen[0], first)
        order = [int((second == row).flatten(1).all(1).nonzero()) for row in seen[1]]
        assert sorted(order) == list(range(8))
        orders.add(tuple(order))
        shuffled = network(second[order], weights, "linear", parts=2)
        torch.testing.assert_close(keys[order], shuffled)
        if sorted(order[:4]) not in (list(range(4)), list(range(4, 8))):
            with float64():
                assert not torch.allclose(keys, network(second, weights, "linear", parts=2))
        assert not keys.requires_grad
    assert len(orders) == 8
    again = Outputs(model, two_views(3, num=8))
    with float64():
        assert torch.equal(again.key, Outputs(model, two_views(3, num=8)).key)


def test_in_evaluation_nothing_is_shuffled() -> None:
    model = noisy(Moco(**TINY, norm_parts=2)).double()
    batch, seen = two_views(0), passed(model)
    with float64():
        key = Outputs(model, batch, grad=False).key
    assert torch.equal(seen[0], batch.stream("second").data)
    swapped = Batch({"image": batch.stream("second")}, batch.same)
    with float64():
        torch.testing.assert_close(key, Outputs(model, swapped, grad=False).query)


def test_sizes_are_resnet_50s() -> None:
    with torch.device("meta"):
        model, second = Moco(), Moco(head="mlp")
    assert sum(p.numel() for p in model.head.parameters()) == 2048 * 128 + 128
    assert sum(p.numel() for p in second.head.parameters()) == 2048 * 2049 + 2049 * 128 - 128 + 128
    assert (model.embed_dim, model.projection_dim) == (2048, 128)
    with pytest.raises(ValueError, match="head is linear or mlp and norm_parts at least 1, got 'mlp', 0"):
        Moco(head="mlp", norm_parts=0)
