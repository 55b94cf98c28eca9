"""The picture of a row in two sizes: one for a model, one for the codebook whose codes it predicts (BEiT)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import normalised
from vlpipe.stages.loading.makers.images.distorted import Distorted
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

SECOND = "second"


@dataclass(frozen=True, kw_only=True)
class TwoSizes(Distorted):
    """As `Distorted`; extra["second"] (B, 3, second_size, second_size) is the same part of it with the same draws."""

    second_size: int

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        again = copy.deepcopy(rng)
        item = super().__call__(row, text, rng)
        return {**item, f"{EXTRA}{SECOND}": self.pixels(row, text, again, self.second_size)}

    def on_device(self, stream: Stream) -> Stream:
        found = super().on_device(stream)
        return replace(found, extra={**found.extra, SECOND: normalised(found.extra[SECOND])})
