"""Negatives of both kinds, another text or another image: Unicoder-VL, ImageBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mismatch import Mismatch
from vlpipe.stages.loading.makers.base import TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MismatchEither(Mismatch):
    """As `Mismatch`, but which stream of a sample is replaced is drawn from `streams`, each equally likely.

    target["match"] (B,) is of the stream `stream`, whichever was replaced. Raises ValueError if `streams` lacks that one.
    """

    streams: tuple[str, ...] = ("text", "regions")

    def __post_init__(self) -> None:
        if self.stream not in self.streams:
            raise ValueError(
                f"mismatch_either: streams must have {self.stream!r}, got {', '.join(self.streams)}"
            )

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        items = {name: [sample[name] for sample in samples] for name in self.streams}
        marks = [self.marks(sample) for sample in samples]
        replaced = self._replaced(len(samples), rng)
        for k, sample in enumerate(samples):
            draw = rng(k)
            draw.random()  # the draw that `each` made
            name = self.streams[int(draw.integers(len(self.streams)))]
            other = self._other(k, items[name], marks, draw) if replaced[k] else None
            if other is not None:
                sample[name] = self.swapped(items[name][k], items[name][other], makers[name])
            sample[self.stream] = {**sample[self.stream], f"{TARGET}match": np.int64(other is None)}
        return samples
