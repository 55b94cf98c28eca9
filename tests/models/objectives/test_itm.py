from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlpipe.models.features import Features
from vlpipe.models.objectives.itc import Itc, same_id
from vlpipe.models.objectives.itm import Itm, hard_negatives, matching

Make = Callable[..., Any]


def test_loss_is_the_mean_over_pairs_judged_one_by_one(make_blip: Make, make_batch: Make) -> None:
    blip, batch = make_blip(), make_batch(5, image_id=[1, 2, 3, 1, 4])
    ids, mask, own = batch["input_ids"], batch["attention_mask"], batch["image_id"]
    tokens = blip.encode_image(batch["pixels"])
    image, text = blip.embed_image(batch["pixels"]), blip.embed_text(ids, mask)
    torch.manual_seed(3)
    out = Itm()(blip, batch, Features(blip, batch))
    torch.manual_seed(3)
    negative_text, _ = hard_negatives(image, text, blip.temp, same_id(own, own))
    negative_image, _ = hard_negatives(text, image, blip.temp, same_id(own, own))
    losses, right = [], 0
    for i in range(5):
        for t, v, label in ((i, i, 1), (i, int(negative_image[i]), 0), (int(negative_text[i]), i, 0)):
            logits = blip.match_logits(ids[t : t + 1], mask[t : t + 1], tokens[v : v + 1])[0]
            losses.append(-logits.log_softmax(0)[label].item())
            right += int(logits.argmax()) == label
    assert out["itm"].item() == pytest.approx(sum(losses) / 15, rel=1e-4)
    assert out["itm_accuracy"].item() == pytest.approx(right / 15)
    assert Itm.LOSSES == ("itm",)


def test_negatives_follow_the_masked_softmax() -> None:
    queries, candidates = F.normalize(torch.randn(1, 4), dim=1), F.normalize(torch.randn(6, 4), dim=1)
    invalid = torch.tensor([[False, True, False, False, True, False]])
    drawn, valid = hard_negatives(
        queries.expand(20000, -1), candidates, torch.tensor(0.5), invalid.expand(20000, -1)
    )
    weights = [
        0.0 if bad else math.exp(float(queries[0] @ c) / 0.5)
        for c, bad in zip(candidates, invalid[0], strict=True)
    ]
    wanted = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(drawn.bincount(minlength=6) / 20000, wanted, rtol=0, atol=0.015)
    assert valid.all()


@pytest.mark.parametrize("temp", [0.5, 0.01, 0.001])
def test_same_ids_are_never_negatives_at_any_temperature(temp: float) -> None:
    """The one other id is the least similar: masked after the softmax, fp32 weights sum to 0 at 0.005."""
    features = torch.eye(1, 8).repeat(6, 1)
    features[5] = -features[5]
    own = torch.tensor([1, 1, 1, 1, 1, 2])
    drawn, valid = hard_negatives(features, features, torch.tensor(temp), same_id(own, own))
    assert drawn[:5].tolist() == [5] * 5
    assert drawn[5] != 5
    assert valid.all()


def test_rows_without_a_negative_do_not_count() -> None:
    logits = torch.randn(9, 2, requires_grad=True)
    out = matching(logits, torch.tensor([True, False, True]))
    counted = [0, 2, 3, 5, 6, 8]
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    assert out["itm"].item() == pytest.approx(F.cross_entropy(logits[counted], labels).item())
    out["itm"].backward()
    assert logits.grad is not None
    assert not logits.grad[[1, 4, 7]].any()


@pytest.mark.parametrize("image_id", [[5], [5, 5, 5]])
def test_one_row_or_one_picture_gives_zero_loss_and_zero_gradient(
    make_blip: Make, make_batch: Make, image_id: list[int]
) -> None:
    blip, batch = make_blip(), make_batch(len(image_id), image_id=image_id)
    out = Itm()(blip, batch, Features(blip, batch))
    assert out["itm"].item() == 0.0
    out["itm"].backward()
    assert all(p.grad is None or not p.grad.any() for p in blip.parameters())


def test_untrained_loss_is_the_prior_entropy_at_best() -> None:
    """Constant logits at the prior 1:2 give 0.6365, where the collapse alarm looks."""
    logits = torch.log(torch.tensor([[2 / 3, 1 / 3]])).expand(30, 2)
    out = matching(logits, torch.ones(10, dtype=torch.bool))
    assert out["itm"].item() == pytest.approx(0.6365, abs=1e-4)
    assert out["itm_accuracy"].item() == pytest.approx(2 / 3)


def test_momentum_negatives_want_itc_first(make_blip: Make, make_batch: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    features, itm = Features(blip, batch), Itm(negatives="momentum")
    with pytest.raises(ValueError, match="list the objective itc before itm"):
        itm(blip, batch, features)
    itc = Itc(queue_size=4)
    itc.bind(blip)
    itc(blip, batch, features)
    assert itm(blip, batch, features)["itm"].isfinite()
