"""What a corruptor is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vlpipe.stages.loading.makers.base import Sample

Rng = Callable[[int], np.random.Generator]  # the generator of sample k; each call starts it anew


class Corruptor(Protocol):
    """Changes the samples of one micro-batch, in place or by new ones, and records under `target/` what losses need.

    makers: stream name -> maker, for what belongs to a stream (its tokenizer, for example).
    """

    def __call__(self, samples: list[Sample], rng: Rng, makers: Any) -> list[Sample]: ...
