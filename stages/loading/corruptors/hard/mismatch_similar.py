"""Pairs some samples with a caption of similar words: InterBERT's hard negatives.

Lin et al. 2020, https://arxiv.org/abs/2003.13198, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mismatch import Mismatch
from vlpipe.stages.loading.makers.base import TARGET, Maker, Sample, folded
from vlpipe.stages.loading.makers.language.neighbour_text import SIMILAR, NeighbourText


@dataclass(frozen=True, kw_only=True)
class MismatchSimilar(Mismatch):
    """As `Mismatch` of a text, but a share `hard` of the replaced ones become one of the similar texts that the maker
    `neighbour_text:NeighbourText` noted, drawn uniformly; the rest, and those without any, the text of another sample.

    The paper's: 0.2, of the 30 most similar captions whose tf-idf similarity is below 0.5. Raises ValueError for a stream of
    another maker.
    """

    hard: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= 1:
            raise ValueError(f"mismatch_similar: hard must be from 0 to 1, got {self.hard}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        if not isinstance(maker := makers[self.stream], NeighbourText):
            raise ValueError(
                f"mismatch_similar: the stream {self.stream!r} needs the maker neighbour_text:NeighbourText, but has "
                f"{type(maker).__name__}"
            )
        before = [sample[self.stream] for sample in samples]
        found = super().__call__(samples, rng, makers)
        for k, (sample, own) in enumerate(zip(found, before, strict=True)):
            draw = np.random.default_rng(rng(k).integers(2**63, size=4))  # apart from the draws of `Mismatch`
            candidates = [one for one in own[SIMILAR] if folded(one) != own["says"][0]]
            if not sample[self.stream][f"{TARGET}match"] and candidates and draw.random() < self.hard:
                ids, words = maker.tokenizer.encode_one(
                    maker.prompt + str(draw.choice(candidates)), maker.length, keep_end=maker.keep_end
                )
                arrays = {"data": np.asarray(ids, np.int64), "words": np.asarray(words, np.int64)}
                sample[self.stream] = {**sample[self.stream], **arrays}
        return found
