"""Text from images with a key/value cache: greedy and nucleus sampling (`beam` searches).

Lengths count new tokens (BLIP's count [DEC] and the prompt). A row's draws come from its own generator and
the batch is never shrunk, so a row's text depends neither on which rows are beside it nor on when those are
finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.capabilities import Generates

NEVER = float("-inf")
SORTED = (512, 4096)  # numbers of likeliest tokens that are sorted, in turn, until the nucleus is within them


def sample(
    model: Generates,
    images: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_length: int = 0,
    max_length: int = 20,
    prompt_ids: Sequence[int] = (),
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Returns a text per image as new ids, without prompt and end token.

    Nucleus sampling (Holtzman et al. 2020), one generator per image; without `top_p` the most probable token. top_k: sample
    from the k most probable tokens only, before the nucleus (transformers' default is 50). images: the model's image
    encodings (B, ...).
    """
    check(model, min_length, max_length, prompt_ids)
    batch = len(images)
    draws = _draws(generators, top_p, batch, max_length).to(images.device)
    cache, logits = start(model, images, prompt_ids, max_length)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[:, [model.text_rules.first, *prompt_ids]] = True
    done = torch.zeros(batch, dtype=torch.bool, device=logits.device)
    new = torch.full((batch, max_length), model.text_rules.end, device=logits.device)
    for t in range(max_length):
        logits = allowed(model, _penalised(logits, seen, repetition_penalty), may_end=t >= min_length)
        token = logits.argmax(-1) if top_p is None else nucleus(logits, top_p, draws[:, t], top_k)
        new[:, t] = torch.where(done, model.text_rules.end, token)
        done |= token == model.text_rules.end
        if t + 1 == max_length or bool(done.all()):
            break
        seen.scatter_(1, token[:, None], True)
        logits = model.predict(model.step_text(token[:, None], cache)[:, -1]).float()
    return [until(row, model.text_rules.end) for row in new.tolist()]


def nucleus(logits: Tensor, top_p: float, draws: Tensor, top_k: int | None = None) -> Tensor:
    """Returns one token per row (B,) from the smallest set of likeliest tokens with probability >= `top_p`.

    Inverse CDF over the probabilities sorted from the likeliest, equal ones by id: `draws` (B,) in [0, 1) decide alone.
    top_k: the probabilities are those among the k likeliest.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits, among = logits.topk(top_k, dim=-1)
        among, by_id = among.sort(dim=-1)
        probs, order = logits.gather(1, by_id).double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        return _drawn(probs, among.gather(1, order), top_p, draws)[0]
    # Sorting a whole vocabulary takes longer than a small model's step; a nucleus is mostly among the likeliest few.
    probs = logits.double().softmax(-1)
    token = torch.zeros(len(probs), dtype=torch.long, device=probs.device)
    rest = torch.arange(len(probs), device=probs.device)  # rows without a token yet
    for num in (*(n for n in SORTED if 2 * n < probs.shape[-1]), probs.shape[-1]):
        first, ids = probs.topk(num, dim=-1) if num < probs.shape[-1] else (probs, None)
        if ids is not None:
            ids, by_id = ids.sort(dim=-1)
            first = first.gather(1, by_id)
        first, order = first.sort(dim=-1, descending=True, stable=True)
        found, least = _drawn(first, order if ids is None else ids.gather(1, order), top_p, draws)
        # further tokens may belong to a nucleus whose least is not above the least of `first`
        is_known = (least > first[:, -1]) | (num == logits.shape[-1])
        token[rest[is_known]] = found[is_known]
        rest, probs, draws = rest[~is_known], probs[~is_known], draws[~is_known]
        if not len(rest):
            break
    return token


def _drawn(probs: Tensor, ids: Tensor, top_p: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the token (B,) that `draws` choose, and the least probability (B,) within the nucleus.

    probs, ids: (B, K), from the likeliest.
    """
    before = probs.cumsum(-1) - probs
    kept = torch.where(before < top_p, probs, 0.0).cumsum(-1)
    at = torch.searchsorted(kept, draws[:, None].double() * kept[:, -1:], right=True)
    last = (before < top_p).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(at, last))[:, 0], probs.gather(1, last)[:, 0]


def start(
    model: Generates, images: Tensor, prompt_ids: Sequence[int], max_length: int, repeats: int = 1
) -> tuple[Any, Tensor]:
    """Reads the start token and the prompt: the cache, and the logits (B x repeats, V) of the first new token."""
    ids = torch.tensor([[model.text_rules.first, *prompt_ids]], device=images.device)
    cache = model.start_text(images, ids.shape[1] + max_length, repeats)
    hidden = model.step_text(ids.expand(len(images) * repeats, -1), cache)
    return cache, model.predict(hidden[:, -1]).float()


def allowed(model: Generates, logits: Tensor, may_end: bool) -> Tensor:
    """Without the tokens that no text contains (`BlipConfig.never`), and [SEP] until it may end."""
    never = [*model.text_rules.never, *([] if may_end else [model.text_rules.end])]
    return logits.index_fill(1, torch.tensor(never, dtype=torch.long, device=logits.device), NEVER)


def check(model: Generates, min_length: int, max_length: int, prompt_ids: Sequence[int]) -> None:
    """ValueError for lengths that cannot be."""
    if not 0 <= min_length <= max_length or max_length < 1:
        raise ValueError(
            f"generate: min_length must be from 0 to max_length, and max_length at least 1; got min_length "
            f"{min_length}, max_length {max_length}"
        )
    room = model.text_rules.max_positions - 1 - len(prompt_ids)
    if max_length > room:
        raise ValueError(
            f"generate: max_length must be at most {room} (max_text_length {model.text_rules.max_positions} minus "
            f"[DEC] and {len(prompt_ids)} prompt tokens), got {max_length}"
        )


def until(ids: list[int], sep: int) -> list[int]:
    return ids[: ids.index(sep)] if sep in ids else ids


def _draws(
    generators: Sequence[torch.Generator] | None, top_p: float | None, batch: int, max_length: int
) -> Tensor:
    """(B, max_length) uniform numbers; all are drawn at once, so a generator's state does not depend on a
    text's length.
    """
    if top_p is None:
        return torch.zeros(batch, 0)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"generate: top_p must be above 0 and at most 1, got {top_p}")
    if generators is None or len(generators) != batch:
        got = "none" if generators is None else len(generators)
        raise ValueError(f"generate: sampling needs one generator for each of the {batch} rows, got {got}")
    rows = [
        torch.rand(max_length, generator=g, dtype=torch.float64, device=g.device).cpu() for g in generators
    ]
    return torch.stack(rows)


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Keskar et al. 2019 (CTRL): tokens seen before become less likely with penalty > 1."""
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
