"""Beam search, for evaluation. Each image has its own beams and its own end, so its text does not depend on
its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlpipe.models.generation.generate import NEVER, check, forbidden, sample
from vlpipe.models.generation.steps import Prompt, start
from vlpipe.models.interface.capabilities import Generates


@dataclass
class Found:
    """The best `room` finished texts of one image, best first; `closed` once nothing better can come."""

    room: int
    length_penalty: float
    texts: list[tuple[float, list[int]]] = field(default_factory=list)
    closed: bool = False

    def add(self, total: float, ids: list[int], length: int) -> None:
        if self.closed or total == NEVER:
            return
        self.texts.append((total / length**self.length_penalty, ids))
        self.texts.sort(key=lambda t: -t[0])
        del self.texts[self.room :]

    def close_if_settled(self, best_total: float, length: int) -> None:
        full = len(self.texts) == self.room
        if full and best_total / length**self.length_penalty <= self.texts[-1][0]:
            self.closed = True


def search(
    model: Generates,
    images: Tensor,
    *,
    num_beams: int,
    min_length: int = 0,
    max_length: int = 20,
    prompt_ids: Prompt = (),
) -> list[list[int]]:
    """As `beam`, with greedy decoding for one beam, which is faster."""
    if num_beams == 1:
        return sample(model, images, min_length=min_length, max_length=max_length, prompt_ids=prompt_ids)
    return beam(
        model,
        images,
        num_beams=num_beams,
        min_length=min_length,
        max_length=max_length,
        prompt_ids=prompt_ids,
    )


def beam(
    model: Generates,
    images: Tensor,
    *,
    num_beams: int = 3,
    min_length: int = 0,
    max_length: int = 20,
    prompt_ids: Prompt = (),
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Returns the best text per image by log probability / length^length_penalty, the end token counted.

    As `generate.sample`: new ids, without prompt and end token. images: the model's image encodings (B, ...).
    """
    check(model, min_length, max_length, prompt_ids)
    batch, sep = len(images), model.text_rules.end
    cache, logits = start(model, images, prompt_ids, max_length, num_beams)
    may_end, may_not = forbidden(model, logits.device)
    totals = torch.full((batch, num_beams), NEVER, device=logits.device)
    totals[:, 0] = 0.0  # all beams are equal at first: only one may grow
    texts = torch.zeros(batch, num_beams, 0, dtype=torch.long, device=logits.device)
    found = [Found(num_beams, length_penalty) for _ in range(batch)]
    for length in range(1, max_length + 1):
        never = may_end if length > min_length else may_not
        logprobs = logits.index_fill(1, never, NEVER).log_softmax(-1)
        totals, parents, tokens = _grow(totals, logprobs.view(batch, num_beams, -1))
        texts = torch.cat([texts.gather(1, _like(parents, texts)), tokens[:, :, None]], dim=2)
        _collect(found, totals[:, :num_beams], texts, length, sep, is_last=length == max_length)
        if length == max_length or all(f.closed for f in found):
            break
        keep = _unfinished(tokens, sep, num_beams)
        totals, parents, tokens = (x.gather(1, keep) for x in (totals, parents, tokens))
        texts = texts.gather(1, _like(keep, texts))
        for f, total in zip(found, totals[:, 0].tolist(), strict=True):
            f.close_if_settled(total, length)
        first_row = torch.arange(batch, device=parents.device)[:, None] * num_beams
        cache.select((first_row + parents).flatten())
        logits = model.predict(model.step_text(tokens.view(-1, 1), cache)[:, -1]).float()
    return [f.texts[0][1] for f in found]


def _grow(totals: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 2K best continuations of K beams, best first: enough that K are left if K end. (B, 2K) totals,
    parents, tokens.
    """
    batch, num_beams, vocab = logprobs.shape
    best, at = (totals[:, :, None] + logprobs).view(batch, -1).topk(2 * num_beams, dim=1)
    return best, at // vocab, at % vocab


def _collect(found: list[Found], totals: Tensor, texts: Tensor, length: int, sep: int, is_last: bool) -> None:
    """Of the K best, those that end now (all, at the last length) are finished."""
    for f, row_totals, row_texts in zip(found, totals.tolist(), texts.tolist(), strict=True):
        for total, ids in zip(row_totals, row_texts, strict=False):
            if ids[-1] == sep:
                f.add(total, ids[:-1], length)
            elif is_last:
                f.add(total, ids, length)


def _unfinished(tokens: Tensor, sep: int, num_beams: int) -> Tensor:
    """Indices (B, K) of the first K continuations that do not end."""
    order = (tokens == sep).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :num_beams]


def _like(index: Tensor, texts: Tensor) -> Tensor:
    return index[:, :, None].expand(-1, -1, texts.shape[2])
