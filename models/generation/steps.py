"""The model's steps while a text is written: with shapes that grow, or with fixed ones, which can be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.capabilities import Generates, TextCache


@dataclass(frozen=True, slots=True)
class Way:
    """How texts are decoded. The texts are the same, up to the rounding of the logits.

    is_fixed: each step reads the whole cache, under a mask, so that shapes do not change. poll: number of steps between
    two looks at whether all texts have ended; each look waits for the device. guess: the number of likeliest tokens
    that are sorted without waiting for the device to say whether they hold the nucleus; 0: it is asked at each step.
    backend: of `torch.compile`; "" for no compilation.
    """

    is_fixed: bool = False
    poll: int = 1
    guess: int = 0
    backend: str = ""

    @classmethod
    def on(cls, device: torch.device, compiled: bool = False) -> Way:
        """Returns the way that suits a device.

        On the CPU, which never waits, texts grow; compiled: shapes are fixed there too.
        """
        backend = "inductor" if compiled else ""
        if device.type == "cpu":
            return cls(is_fixed=compiled, backend=backend)
        return cls(is_fixed=True, poll=8, guess=4096, backend=backend)


class Steps:
    """Decodes a batch of texts: `start`, then `next` for each token. Kept between batches, it is compiled once.

    A compiled step keeps its cache, too, so all batches must have the same shape. On a GPU it runs as a CUDA graph.
    """

    def __init__(self, model: Generates, way: Way) -> None:
        if way.backend and not way.is_fixed:
            raise ValueError("a step can only be compiled with fixed shapes: set is_fixed")
        self.model, self.way = model, way
        self._cache: Any = None
        self._step: Callable[[Tensor, Any], Tensor] = self._logits
        if way.backend:
            mode = "reduce-overhead" if way.backend == "inductor" else None
            self._step = torch.compile(
                self._logits, fullgraph=True, dynamic=False, backend=way.backend, mode=mode
            )

    def surely(self) -> Steps:
        """Returns these steps, without guesses."""
        same = Steps.__new__(Steps)
        same.__dict__ |= self.__dict__
        same.way = replace(self.way, guess=0)
        return same

    def start(self, images: Tensor, prompt_ids: Sequence[int], max_length: int) -> Tensor:
        """Reads the start token and the prompt. Returns the logits (B, V) of the first new token, in float32."""
        cache, logits = start(self.model, images, prompt_ids, max_length)
        if self.way.is_fixed:
            cache.fix()
        if self._cache is None or not self.way.backend:
            self._cache = cache
            if self.way.backend:
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
    model: Generates, images: Tensor, prompt_ids: Sequence[int], max_length: int, repeats: int = 1
) -> tuple[TextCache, Tensor]:
    """Reads the start token and the prompt: the cache, and the logits (B x repeats, V) of the first new token."""
    ids = torch.tensor([[model.text_rules.first, *prompt_ids]], device=images.device)
    cache: TextCache = model.start_text(images, ids.shape[1] + max_length, repeats)
    hidden = model.step_text(ids.expand(len(images) * repeats, -1), cache)
    return cache, model.predict(hidden[:, -1]).float()
