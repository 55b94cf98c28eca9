from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.objectives.lm import Lm, next_tokens
from vlpipe.models.tokenizer import Tokenizer

Make = Callable[..., Any]


def lm_of(model: Any, **options: Any) -> Lm:
    lm = Lm(**options)
    lm.bind(model)
    return lm


def prompted(batch: Batch, prompt: int) -> Batch:
    """The batch with the first `prompt` positions of each text given; 0 for no prompt."""
    extra = {"prompt": torch.full((len(batch),), prompt)} if prompt else {}
    return replace(batch, streams={**batch.streams, "text": replace(batch.stream("text"), extra=extra)})


@pytest.mark.parametrize("prompt", [0, 3])
def test_loss_token_by_token(make_blip: Make, make_batch: Make, values_of: Make, prompt: int) -> None:
    blip, batch = make_blip(), prompted(make_batch(4), prompt)
    out = values_of(lm_of(blip), blip, batch)
    text, tokens = batch.stream("text"), blip.encode_image(batch.stream("image").data)
    losses = []
    for i, length in enumerate(text.mask.sum(1).tolist()):
        ids = text.data[i : i + 1, :length]
        logprobs = blip.lm_logits(ids, torch.ones_like(ids), tokens[i : i + 1])[0].log_softmax(-1)
        for t in range(max(0, prompt - 1), length - 1):
            target = int(ids[0, t + 1])
            losses.append(-0.9 * logprobs[t, target].item() - 0.1 * logprobs[t].mean().item())
    assert out["lm"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert tuple(out) == Lm.LOSSES


def test_targets_by_hand() -> None:
    ids = torch.tensor([[2, 11, 12, 13, 3, 0], [2, 11, 3, 0, 0, 0]])
    x = IGNORE

    def targets(**extra: torch.Tensor) -> list[list[int]]:
        return next_tokens(Stream(ids, ids != 0, extra=extra)).tolist()

    assert targets() == [[11, 12, 13, 3, x], [11, 3, x, x, x]]
    assert targets(prompt=torch.tensor([1, 1])) == targets()
    assert targets(prompt=torch.tensor([3, 3])) == [[x, x, 13, 3, x], [x, x, x, x, x]]
    assert targets(prompt=torch.tensor([3, 2])) == [[x, x, 13, 3, x], [x, 3, x, x, x]]


def test_smoothing_is_the_models_or_the_objectives(make_blip: Make) -> None:
    blip = make_blip(label_smoothing=0.3)
    assert lm_of(blip).label_smoothing == 0.3
    assert lm_of(blip, label_smoothing=0.0).label_smoothing == 0.0


def test_dec_and_padding_are_never_learned(
    make_blip: Make, make_batch: Make, values_of: Make, tokenizer: Tokenizer
) -> None:
    """No prediction is asked for where only padding follows, and [DEC] and [PAD] get smoothing mass alone."""
    blip, batch = make_blip(), make_batch(4)
    values_of(lm_of(blip), blip, batch)["lm"].backward()
    grad, text = blip.lm_head.bias.grad, batch.stream("text")
    targets = text.data[:, 1:][text.mask[:, 1:]]
    assert (grad[[tokenizer.dec, tokenizer.pad]] > -0.1 / len(blip.lm_head.bias)).all()
    assert not {tokenizer.dec, tokenizer.pad} & set(targets.tolist())


def test_the_floor_at_berts_vocabulary_is_1_358() -> None:
    vocab, eps = 30524, 0.1
    best = torch.full(
        (1, vocab), eps / vocab, dtype=torch.float64
    )  # in float32 the sum depends on the machine
    best[0, 5] += 1 - eps
    loss = F.cross_entropy(best.log(), torch.tensor([5]), label_smoothing=eps)
    assert loss.item() == pytest.approx(1.358, abs=1e-3)
    assert loss.item() == pytest.approx(-sum(p * math.log(p) for p in best[0].tolist()), rel=1e-4)


def test_a_batch_of_prompts_alone_gives_zero(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), prompted(make_batch(2), 99)
    out = values_of(lm_of(blip), blip, batch)
    assert out["lm"].item() == 0.0
    assert lm_of(blip).counts(batch) == {"lm": 0}
    out["lm"].backward()


def test_sums_and_counts_of_micro_batches_add_up(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), prompted(make_batch(6), 2)
    lm = lm_of(blip)
    whole = values_of(lm, blip, batch)["lm"]
    total, count = 0.0, 0
    for part in range(3):
        micro = batch.map(lambda value, part=part: value.chunk(3)[part])
        num = int(lm.counts(micro)["lm"])
        total += values_of(lm, blip, micro)["lm"].item() * num
        count += num
    assert count == lm.counts(batch)["lm"]
    assert total / count == pytest.approx(whole.item(), rel=1e-5)


def test_padding_to_any_length_is_the_same_loss(make_blip: Make, make_batch: Make, values_of: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    text = batch.stream("text").map(lambda value: F.pad(value, (0, 6)))
    longer = replace(batch, streams={**batch.streams, "text": text})
    a, b = (values_of(lm_of(blip), blip, x)["lm"] for x in (batch, longer))
    assert torch.equal(a, b)
