"""Noise that a denoising autoencoder removes.

Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import pixels_of
from vlpipe.stages.loading.makers.base import EXTRA, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Draws noise of D values: extra["keep"] (B, D) uint8 and extra["added"] (B, D) float32, for `keep x value + added`.

    kind: "masking", a share `rate` of the values becomes 0; "salt_pepper", it becomes 0 or 1; "gaussian", each value gets a
    normal one of deviation `sigma`. Values are those from 0 to 1 that an autoencoder reads. units: D; None: the picture's.
    """

    kind: Literal["masking", "salt_pepper", "gaussian"] = "masking"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.25
    sigma: Annotated[float, Field(gt=0)] = 0.3
    units: int | None = None
    stream: str = "image"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            num = self.units or pixels_of(item, "noise").size
            draw = rng(k)
            keep, added = np.ones(num, np.uint8), np.zeros(num, np.float32)
            if self.kind == "gaussian":
                added = draw.normal(0, self.sigma, num).astype(np.float32)
            else:
                struck = draw.random(num) < self.rate
                keep[struck] = 0
                if self.kind == "salt_pepper":
                    added[struck] = draw.random(int(struck.sum())) < 0.5
            sample[self.stream] = {**item, f"{EXTRA}keep": keep, f"{EXTRA}added": added}
        return samples
