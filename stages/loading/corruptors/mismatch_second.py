"""Pairs of texts of which the second is another sample's: BERT's next-sentence prediction, VisualBERT's captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mismatch import Mismatch
from vlpipe.stages.loading.makers.base import ROW, Item, Maker, Sample, folded
from vlpipe.stages.loading.makers.text_pair import FIRST, SECOND, TextPair


@dataclass(frozen=True, kw_only=True)
class MismatchSecond(Mismatch):
    """As `Mismatch`, of a stream of `TextPair`: the first text stays, the second becomes that of another sample.

    The other sample is not of the same picture, and its second text differs in more than case and spaces. Raises ValueError
    for a stream of another maker.
    """

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        if not isinstance(maker := makers[self.stream], TextPair):
            raise ValueError(
                f"mismatch_second: the stream {self.stream!r} needs the maker text_pair:TextPair, but has "
                f"{type(maker).__name__}"
            )
        return super().__call__(samples, rng, makers)

    def marks(self, sample: Sample) -> frozenset[tuple[str, Any]]:
        item = sample[self.stream]
        return frozenset({(ROW, item[ROW][0]), (SECOND, folded(item[SECOND][0]))})

    def swapped(self, item: Item, other: Item, maker: Maker) -> Item:
        assert isinstance(maker, TextPair)
        return {**item, **maker.encoded(item[FIRST][0], other[SECOND][0])}
