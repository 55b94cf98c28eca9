"""The model's steps while a text is written: with shapes that grow, or with fixed ones, which can be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.capabilities import Generates, TextCache


@dataclass(frozen=True, slots=True)
class Decoding:
    """Options of decoding. They change no text, except by the rounding of logits.

    static_cache: each step attends to the whole preallocated cache under a mask, so that shapes stay the same.
    check_every: number of steps between two checks whether all texts have ended; each check waits for the device.
    shortlist: number of likeliest tokens that are sorted in place of the whole vocabulary; if a nucleus is larger, the
    batch is decoded again without it. 0: the nucleus is found exactly in each step, which waits for the device.
    backend: of `torch.compile`; "" for no compilation.
    """

    static_cache: bool = False
    check_every: int = 1
    shortlist: int = 0
    backend: str = ""

    @classmethod
    def on(cls, device: torch.device, compiled: bool = False) -> Decoding:
        """Returns the options for a device.

        On the CPU, which never waits, texts grow; compiled: shapes are fixed there too.
        """
        backend = "inductor" if compiled else ""
        if device.type == "cpu":
            return cls(static_cache=compiled, backend=backend)
        return cls(static_cache=True, check_every=8, shortlist=4096, backend=backend)


Prompt = Sequence[int] | Tensor  # ids of all texts, or (B, P), of each text its own


def prompt_length(prompt: Prompt) -> int:
    """Returns the number of tokens of each prompt."""
    return prompt.shape[1] if isinstance(prompt, Tensor) else len(prompt)


def given_ids(model: Generates, prompt: Prompt, num: int, device: torch.device) -> Tensor:
    """Returns the tokens before the first new one, (num, 1 + P): the start token and the prompt."""
    first = torch.full((num, 1), model.text_rules.first, device=device)
    own = prompt if isinstance(prompt, Tensor) else torch.tensor([*prompt], dtype=torch.long)[None]
    return torch.cat([first, own.to(device).expand(num, -1)], 1)


class Steps:
    """Decodes a batch of texts: `start`, then `next` for each token. Kept between batches, it is compiled once.

    A compiled step also keeps its cache; a batch of another shape is then a ValueError. On a GPU it runs as a CUDA graph.
    """

    def __init__(self, model: Generates, decoding: Decoding) -> None:
        if decoding.backend and not decoding.static_cache:
            raise ValueError("a step can only be compiled with fixed shapes: set static_cache")
        self.model, self.decoding = model, decoding
        self._cache: Any = None
        self._step: Callable[[Tensor, Any], Tensor] = self._logits
        if decoding.backend:
            mode = "reduce-overhead" if decoding.backend == "inductor" else None
            self._step = torch.compile(
                self._logits, fullgraph=True, dynamic=False, backend=decoding.backend, mode=mode
            )

    def without_shortlist(self) -> Steps:
        """Returns the same steps with exact nuclei."""
        same = copy(self)
        same.decoding = replace(self.decoding, shortlist=0)
        return same

    def start(self, images: Tensor, prompt_ids: Prompt, max_length: int) -> Tensor:
        """Reads the start token and the prompt. Returns the logits (B, V) of the first new token, in float32."""
        cache, logits = start(self.model, images, prompt_ids, max_length)
        if self.decoding.static_cache:
            cache.fix()
        if self._cache is None or not self.decoding.backend:
            self._cache = cache
            if self.decoding.backend:
                for tensor in cache.tensors():
                    torch._dynamo.mark_static_address(tensor)
        else:
            self._cache.copy_(cache)
        return logits

    def next(self, token: Tensor) -> Tensor:
        """Returns the logits (B, V) of the token after `token` (B,), in float32."""
        return self._step(token, self._cache)

    def _logits(self, token: Tensor, cache: Any) -> Tensor:
        return self.model.predict(self.model.step_text(token[:, None], cache)[:, -1]).float()


def start(
    model: Generates, images: Tensor, prompt_ids: Prompt, max_length: int, repeats: int = 1
) -> tuple[TextCache, Tensor]:
    """Reads the start token and the prompt: the cache, and the logits (B x repeats, V) of the first new token."""
    ids = given_ids(model, prompt_ids, len(images), images.device)
    cache: TextCache = model.start_text(images, ids.shape[1] + max_length, repeats)
    hidden = model.step_text(ids.repeat_interleave(repeats, 0) if repeats > 1 else ids, cache)
    return cache, model.predict(hidden[:, -1]).float()
