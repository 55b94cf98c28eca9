from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.objectives.itc import Itc, contrast
from vlpipe.models.teachers import Ema

Make = Callable[..., Any]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def slow_contrast(
    own: Tensor, own_m: Tensor, others: Tensor, positives: list[list[int]], temp: float, alpha: float
) -> float:
    """ALBEF eq. 6 with several positives, one row and one candidate at a time."""
    own, own_m, others = own.detach(), own_m.detach(), others.detach()
    total = 0.0
    for i in range(len(own)):
        student = [math.exp(float(own[i] @ c) / temp) for c in others]
        teacher = [math.exp(float(own_m[i] @ c) / temp) for c in others]
        for j in range(len(others)):
            hard = 1 / len(positives[i]) if j in positives[i] else 0.0
            target = alpha * teacher[j] / sum(teacher) + (1 - alpha) * hard
            total -= target * math.log(student[j] / sum(student))
    return total / len(own)


def test_contrast_is_the_slow_one() -> None:
    student, teacher, candidates = (
        (unit(3, 8), unit(3, 8)),
        (unit(3, 8), unit(3, 8)),
        (unit(7, 8), unit(7, 8)),
    )
    positives = [[0, 5], [1], [2, 3, 6]]
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for i, columns in enumerate(positives):
        mask[i, columns] = True
    for alpha in (0.0, 0.4):
        got = contrast(student, teacher, candidates, mask, torch.tensor(0.3), alpha)
        i2t = slow_contrast(student[0], teacher[0], candidates[1], positives, 0.3, alpha)
        t2i = slow_contrast(student[1], teacher[1], candidates[0], positives, 0.3, alpha)
        assert got.shape == (3,)
        assert got.mean().item() == pytest.approx((i2t + t2i) / 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_meet_a_queue_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    own = [unit(3, 8).to(dtype).requires_grad_() for _ in range(2)]
    candidates = (unit(7, 8), unit(7, 8))
    mask = torch.eye(3, 7, dtype=torch.bool)

    def loss(features: list[Tensor]) -> Tensor:
        student, teacher = (features[0], features[1]), (features[1].detach(), features[0].detach())
        return contrast(student, teacher, candidates, mask, torch.tensor(0.07), 0.4)

    found = loss(own)
    torch.testing.assert_close(found, loss([x.float() for x in own]), rtol=0, atol=0)
    found.sum().backward()
    for x in own:
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert bool(x.grad.any())


def embedded(blip: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    text = batch.stream("text")
    return blip.embed_image(batch.stream("image").data), blip.embed_text(text.data, text.mask)


def teacher_of(model: Any, **options: Any) -> Ema:
    ema = Ema(**options)
    ema.bind(model)
    return ema


def test_loss_of_a_step_from_its_definition(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    """First step: the teacher is the student, the queue is empty; row 2 shows the picture of row 0."""
    blip, batch = make_blip(), make_batch(4, same=[7, 8, 7, 9], progress=0.5)
    itc = Itc(queue_size=8, alpha=0.4, alpha_ramp_epochs=2)
    itc.bind(blip)
    out = values_of(itc, blip, batch)
    image, text = embedded(blip, batch)
    positives = [[0, 2], [1], [0, 2], [3]]
    i2t = slow_contrast(image, image, text, positives, 0.07, 0.1)
    t2i = slow_contrast(text, text, image, positives, 0.07, 0.1)
    assert set(out) == {"itc", "temp"}
    assert Itc.LOSSES == ("itc",)
    assert out["itc"].item() == pytest.approx((i2t + t2i) / 2, rel=1e-4)


def test_the_queue_wraps_and_knows_its_ids(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    """Queue 10, batches of 4: after 3 steps it holds the last 10 rows of the teacher, newest over oldest."""
    blip = make_blip()
    ema, itc = teacher_of(blip), Itc(queue_size=10)
    itc.bind(blip)
    for parameter in blip.parameters():
        parameter.data.mul_(0.9)  # the teacher is no longer the student
    seen: list[tuple[int, Tensor, Tensor]] = []
    for step in range(3):
        batch = make_batch(4, same=[10 * step + i for i in range(4)])
        values_of(itc, blip, batch, ema)
        seen += zip(batch.same.tolist(), *embedded(ema.copy, batch), strict=True)
        assert int(itc.queue.num_pushed) == len(seen)
    for i, (same, image, text) in list(enumerate(seen))[-10:]:
        assert itc.queue.ids[i % 10] == same
        assert torch.equal(itc.queue.image[i % 10], image)
        assert torch.equal(itc.queue.text[i % 10], text)


def test_a_batch_larger_than_the_queue_leaves_its_last_rows(
    make_blip: Make, make_batch: Make, values_of: Make
) -> None:
    blip, batch = make_blip(), make_batch(5)
    itc = Itc(queue_size=3)
    itc.bind(blip)
    values_of(itc, blip, batch)
    assert sorted(itc.queue.ids.tolist()) == [2, 3, 4]
    none = Itc(queue_size=0)
    none.bind(blip)
    assert values_of(none, blip, batch)["itc"].isfinite()


def test_slots_never_filled_do_not_count_and_queued_ids_are_positives(
    make_blip: Make, make_batch: Make, values_of: Make
) -> None:
    """A large queue with one batch in it equals a full one; queued rows of the same picture are positives."""
    blip, first, second = make_blip(), make_batch(3, same=[1, 2, 3]), make_batch(3, same=[3, 4, 5])
    losses = []
    for size in (3, 4000):
        itc = Itc(queue_size=size, alpha=0.0)
        itc.bind(blip)
        values_of(itc, blip, first)
        losses.append(values_of(itc, blip, second)["itc"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    image, text = zip(*(embedded(blip, b) for b in (second, first)), strict=True)
    positives = [[0, 5], [1], [2]]
    i2t = slow_contrast(image[0], image[0], torch.cat(text), positives, 0.07, 0.0)
    t2i = slow_contrast(text[0], text[0], torch.cat(image), positives, 0.07, 0.0)
    assert losses[0] == pytest.approx((i2t + t2i) / 2, rel=1e-4)


def test_the_teacher_gets_no_gradient(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    ema, itc = teacher_of(blip), Itc(queue_size=4)
    itc.bind(blip)
    values_of(itc, blip, batch, ema)["itc"].backward()
    assert not any(p.requires_grad or p.grad is not None for p in ema.parameters())
    assert not [p for p in itc.parameters() if p.requires_grad]
    assert blip.text.words.weight.grad is not None


def test_a_fixed_temperature_is_not_learned(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    itc = Itc(queue_size=4, temp=0.05)
    itc.bind(blip)
    out = values_of(itc, blip, batch)
    out["itc"].backward()
    assert out["temp"].item() == pytest.approx(0.05)
    assert blip.temp.grad is None


def test_evaluation_changes_no_state(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    itc = Itc(queue_size=4)
    itc.bind(blip)
    itc.eval()
    before = {n: v.clone() for n, v in itc.state_dict().items()}
    values_of(itc, blip, batch)
    assert all(torch.equal(v, before[n]) for n, v in itc.state_dict().items())


def test_a_learned_temperature_stays_within_bounds(
    make_blip: Make, make_batch: Make, values_of: Make
) -> None:
    blip, batch = make_blip(), make_batch(3)
    itc = Itc(queue_size=4)
    itc.bind(blip)
    for given, wanted in ((9.0, 0.5), (-1.0, 0.001)):
        blip.temp.data.fill_(given)
        blip.constrain()
        out = values_of(itc, blip, batch)
        assert out["temp"].item() == pytest.approx(wanted)
        assert out["itc"].isfinite()


def test_alpha_ramps_over_epochs() -> None:
    itc = Itc(alpha=0.4, alpha_ramp_epochs=2)
    assert [itc._alpha(p) for p in (0, 0.5, 1, 2, 7)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert Itc(alpha=0.4, alpha_ramp_epochs=0)._alpha(0) == 0.4


def test_state_restored_continues_exactly(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batches = make_blip(), [make_batch(3) for _ in range(3)]
    whole, half = Itc(queue_size=7), Itc(queue_size=7)
    whole.bind(blip)
    for batch in batches[:2]:
        values_of(whole, blip, batch)
    half.bind(blip)
    half.load_state_dict(whole.state_dict())
    a, b = (values_of(x, blip, batches[2])["itc"] for x in (whole, half))
    assert torch.equal(a, b)
