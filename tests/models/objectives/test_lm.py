from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlpipe.models.features import Features
from vlpipe.models.objectives.lm import IGNORE, Lm, next_tokens
from vlpipe.models.tokenizer import Tokenizer

Make = Callable[..., Any]


@pytest.mark.parametrize("prompt_length", [0, 3])
def test_loss_token_by_token(
    make_blip: Make, make_batch: Make, tokenizer: Tokenizer, prompt_length: int
) -> None:
    blip, batch = make_blip(), make_batch(4)
    out = Lm(prompt_length=prompt_length)(blip, batch, Features(blip, batch))
    tokens = blip.encode_image(batch["pixels"])
    losses = []
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids = batch["input_ids"][i : i + 1, :length]
        logprobs = blip.lm_logits(ids, torch.ones_like(ids), tokens[i : i + 1])[0].log_softmax(-1)
        for t in range(max(0, prompt_length - 1), length - 1):
            target = int(ids[0, t + 1])
            losses.append(-0.9 * logprobs[t, target].item() - 0.1 * logprobs[t].mean().item())
    assert out["lm"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert tuple(out) == Lm.LOSSES


def test_targets_by_hand() -> None:
    ids = torch.tensor([[2, 11, 12, 13, 3, 0], [2, 11, 3, 0, 0, 0]])
    mask = (ids != 0).long()
    x = IGNORE
    assert next_tokens(ids, mask, 0).tolist() == [[11, 12, 13, 3, x], [11, 3, x, x, x]]
    assert next_tokens(ids, mask, 1).tolist() == next_tokens(ids, mask, 0).tolist()
    assert next_tokens(ids, mask, 3).tolist() == [[x, x, 13, 3, x], [x, x, x, x, x]]


def test_dec_and_padding_are_never_learned(make_blip: Make, make_batch: Make, tokenizer: Tokenizer) -> None:
    """No prediction is asked for where only padding follows, and [DEC] and [PAD] get smoothing mass alone."""
    blip, batch = make_blip(), make_batch(4)
    Lm()(blip, batch, Features(blip, batch))["lm"].backward()
    grad = blip.lm_head.bias.grad
    targets = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] == 1]
    assert (grad[[tokenizer.dec, tokenizer.pad]] > -0.1 / len(blip.lm_head.bias)).all()
    assert not {tokenizer.dec, tokenizer.pad} & set(targets.tolist())


def test_the_floor_at_berts_vocabulary_is_1_358() -> None:
    vocab, eps = 30524, 0.1
    best = torch.full(
        (1, vocab), eps / vocab, dtype=torch.float64
    )  # in float32 the sum depends on the machine
    best[0, 5] += 1 - eps
    loss = torch.nn.functional.cross_entropy(best.log(), torch.tensor([5]), label_smoothing=eps)
    assert loss.item() == pytest.approx(1.358, abs=1e-3)
    assert loss.item() == pytest.approx(-sum(p * math.log(p) for p in best[0].tolist()), rel=1e-4)


def test_a_batch_of_prompts_alone_gives_zero(make_blip: Make, make_batch: Make) -> None:
    blip, batch = make_blip(), make_batch(2)
    out = Lm(prompt_length=99)(blip, batch, Features(blip, batch))
    assert out["lm"].item() == 0.0
    out["lm"].backward()


def test_micro_batches_weighted_by_their_terms_are_the_whole_batch(make_blip: Make, make_batch: Make) -> None:
    blip, batch, lm = make_blip(), make_batch(6), Lm(prompt_length=2)
    whole = lm(blip, batch, Features(blip, batch))["lm"]
    total = 0.0
    for part in range(3):
        micro = {n: v.chunk(3)[part] if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        total += lm(blip, micro, Features(blip, micro))["lm"].item() * lm.num_terms(micro)
    assert total / lm.num_terms(batch) == pytest.approx(whole.item(), rel=1e-5)


def test_padding_to_any_length_is_the_same_loss(make_blip: Make, make_batch: Make) -> None:
    blip, batch = make_blip(), make_batch(3)
    pad = torch.zeros(3, 6, dtype=torch.long)
    longer = {**batch, **{n: torch.cat([batch[n], pad], 1) for n in ("input_ids", "attention_mask")}}
    a, b = (Lm()(blip, x, Features(blip, x))["lm"] for x in (batch, longer))
    assert torch.equal(a, b)
