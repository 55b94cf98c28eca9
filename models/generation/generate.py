"""Text from images with a key/value cache: greedy and nucleus sampling (`beam` searches).

Lengths count new tokens (BLIP's count [DEC] and the prompt). A row's draws come from its own generator and
the batch is never shrunk, so a row's text depends neither on which rows are beside it nor on when those are
finished.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlpipe.models.generation.nucleus import from_shortlist, nucleus
from vlpipe.models.generation.steps import Decoding, Prompt, Steps, given_ids, prompt_length
from vlpipe.models.interface.capabilities import Generates

NEVER = float("-inf")


def sample(
    model: Generates,
    images: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_length: int = 0,
    max_length: int = 20,
    prompt_ids: Prompt = (),
    repetition_penalty: float = 1.0,
    steps: Steps | None = None,
) -> list[list[int]]:
    """Returns a text per image as new ids, without prompt and end token.

    Nucleus sampling (Holtzman et al. 2020), one generator per image; without `top_p` the most probable token. top_k: sample
    from the k most probable tokens only, before the nucleus (transformers' default is 50). images: the model's image
    encodings (B, ...). prompt_ids: of all texts, or a tensor (B, P) with one prompt per image. steps: how the model's steps
    are run; None: as suits the device of `images`.
    """
    check(model, min_length, max_length, prompt_ids)
    draws = _draws(generators, top_p, len(images), max_length).to(images.device)
    steps = steps or Steps(model, Decoding.on(images.device))
    found = _sample(
        model, images, steps, draws, top_p, top_k, min_length, max_length, prompt_ids, repetition_penalty
    )
    if found is None:  # a nucleus was larger than the shortlist
        sure = steps.without_shortlist()
        found = _sample(
            model, images, sure, draws, top_p, top_k, min_length, max_length, prompt_ids, repetition_penalty
        )
        assert found is not None
    return [until(row, model.text_rules.end) for row in found.tolist()]


def _sample(
    model: Generates,
    images: Tensor,
    steps: Steps,
    draws: Tensor,
    top_p: float | None,
    top_k: int | None,
    min_length: int,
    max_length: int,
    prompt_ids: Prompt,
    penalty: float,
) -> Tensor | None:
    """Returns the new ids (B, max_length), each text followed by the end token; None if the shortlist was too short."""
    end, decoding = model.text_rules.end, steps.decoding
    logits = steps.start(images, prompt_ids, max_length)
    may_end, may_not = forbidden(model, logits.device)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen.scatter_(1, given_ids(model, prompt_ids, len(images), logits.device), True)
    done = torch.zeros(len(images), dtype=torch.bool, device=logits.device)
    sure = torch.ones_like(done)
    new = torch.full((len(images), max_length), end, device=logits.device)
    for t in range(max_length):
        logits = _penalised(logits, seen, penalty)
        logits = logits.index_fill(1, may_end if t >= min_length else may_not, NEVER)
        if top_p is None:
            token = logits.argmax(-1)
        elif decoding.shortlist:
            token, known = from_shortlist(logits, top_p, draws[:, t], top_k, decoding.shortlist)
            sure &= known | done
        else:
            token = nucleus(logits, top_p, draws[:, t], top_k)
        new[:, t] = torch.where(done, end, token)
        done |= token == end
        is_last = t + 1 == max_length
        if is_last or (t + 1) % decoding.check_every == 0:
            all_done, all_sure = torch.stack([done.all(), sure.all()]).tolist()
            if not all_sure:
                return None
            if all_done or is_last:
                break
        if penalty != 1.0:
            seen.scatter_(1, token[:, None], True)
        logits = steps.next(token)
    return new


def forbidden(model: Generates, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the ids of tokens that no text contains, without and with the end token, which comes too early otherwise."""
    rules = model.text_rules
    never = torch.tensor([*rules.never, rules.end], dtype=torch.long, device=device)
    return never[:-1], never


def check(model: Generates, min_length: int, max_length: int, prompt_ids: Prompt) -> None:
    """ValueError for lengths that cannot be."""
    if not 0 <= min_length <= max_length or max_length < 1:
        raise ValueError(
            f"generate: min_length must be from 0 to max_length, and max_length at least 1; got min_length "
            f"{min_length}, max_length {max_length}"
        )
    room = model.text_rules.max_positions - 1 - prompt_length(prompt_ids)
    if max_length > room:
        raise ValueError(
            f"generate: max_length must be at most {room} (max_text_length {model.text_rules.max_positions} minus "
            f"[DEC] and {prompt_length(prompt_ids)} prompt tokens), got {max_length}"
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
