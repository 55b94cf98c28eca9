"""Images drawn code by code with a cache of keys and values (iGPT, DALL-E)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlpipe.models.generation.nucleus import nucleus
from vlpipe.models.interface.code_capabilities import DrawsCodes
from vlpipe.models.interface.outputs import Outputs


@torch.no_grad()
def draw_codes(
    model: DrawsCodes,
    out: Outputs,
    *,
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Returns the codes (B, N) of an image for each row of `out`, sampled one after the other.

    generators: one per row, so that a row's draws do not depend on its batch. temperature, top_p, top_k: of the
    distributions that are sampled from. given: the first codes (B, T) of each image, T < N; the rest is drawn. Raises
    ValueError for other parameters than can be.
    """
    num, places = len(out), model.num_places
    if temperature <= 0 or not 0 < top_p <= 1 or len(generators) != num:
        raise ValueError(
            "draw_codes: temperature must be above 0, top_p above 0 and at most 1, and each row has a generator; got "
            f"{temperature}, {top_p} and {len(generators)} generators for {num} rows"
        )
    if given is not None and not 0 < given.shape[1] < places:
        raise ValueError(f"draw_codes: wanted 1 to {places - 1} given codes, got {given.shape[1]}")
    cache, hidden = model.start_codes(out)
    device, first = hidden.device, 0 if given is None else given.shape[1]
    draws = torch.stack(
        [torch.rand(places, generator=g, dtype=torch.float64, device=g.device).cpu() for g in generators]
    ).to(device)
    codes = torch.zeros(num, places, dtype=torch.long, device=device)
    if given is not None:
        codes[:, :first] = given
        hidden = model.step_codes(codes[:, :first], cache)[:, -1]
    for place in range(first, places):
        logits = model.predict_codes(hidden).float() / temperature
        codes[:, place] = nucleus(logits, top_p, draws[:, place], top_k)
        if place + 1 < places:
            hidden = model.step_codes(codes[:, place : place + 1], cache)[:, -1]
    return codes
