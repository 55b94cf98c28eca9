"""Which attention mask a text has: VLP's and UniLM's two. Zhou et al. 2019, https://arxiv.org/abs/1909.11059."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import EXTRA, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class LeftToRight:
    """Records extra["left_to_right"] (B,) bool of a text stream: True where a word sees no word after itself.

    rate: probability of True. 1 and 0, in the views of two tasks, draw one mask per batch, as the paper does; 0.75 in one
    view draws it per sample, as the released code does.
    """

    rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    stream: str = "text"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            is_left = np.bool_(rng(k).random() < self.rate)
            sample[self.stream] = {**sample[self.stream], f"{EXTRA}left_to_right": is_left}
        return samples
