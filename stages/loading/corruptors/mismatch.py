"""Pairs some samples with a stream of another sample, for matching losses that need no model to choose negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import ROW, SAYS, TARGET, Item, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Replaces `stream` of some samples by that of another sample of the micro-batch, and records the truth.

    target["match"] (B,) of the replaced stream: 1 where a sample keeps its own, else 0. law: "half" replaces exactly half of
    the micro-batch (ViLT), "each" every sample with probability `rate` (BERT, LXMERT). The other sample is drawn from those
    that differ in the stream, are of another picture (`same` of the batch), and whose text differs in more than case or
    spaces; without any, the sample keeps its own and matches.
    """

    stream: str = "text"
    law: Literal["half", "each"] = "each"
    rate: float = 0.5

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        items = [sample[self.stream] for sample in samples]
        marks = [self.marks(sample) for sample in samples]
        replaced = self._replaced(len(samples), rng)
        for k, sample in enumerate(samples):
            other = self._other(k, items, marks, rng(k)) if replaced[k] else None
            item = items[k] if other is None else self.swapped(items[k], items[other], makers[self.stream])
            sample[self.stream] = {**item, f"{TARGET}match": np.int64(other is None)}
        return samples

    def marks(self, sample: Sample) -> frozenset[tuple[str, Any]]:
        """Returns what two samples must not share to be a mismatch: the pictures, and what the texts say."""
        return frozenset(
            (key, item[key][0]) for item in sample.values() for key in (ROW, SAYS) if key in item
        )

    def swapped(self, item: Item, other: Item, maker: Maker) -> Item:
        """Returns the item that replaces `item`."""
        return other

    def _replaced(self, num: int, rng: Rng) -> list[bool]:
        if self.law == "half":
            order = rng(0).permutation(num)
            return [bool(place < num // 2) for place in np.argsort(order)]
        return [bool(rng(k).random() < self.rate) for k in range(num)]

    def _other(
        self, k: int, items: list[Item], marks: list[frozenset[tuple[str, Any]]], rng: np.random.Generator
    ) -> int | None:
        rng.random()  # the draw that `each` made
        for other in rng.permutation(len(items)):
            if (
                other != k
                and marks[other].isdisjoint(marks[k])
                and not np.array_equal(items[other]["data"], items[k]["data"])
            ):
                return int(other)
        return None
