"""A fixed share of masked words: BERT's published code, and UniLM's and VLP's captions, whose end is masked, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MaskShare:
    """Masks words of a text stream and records the originals in `target["ids"]` (B, L), IGNORE elsewhere.

    Of n tokens, min(most, max(1, round(rate x n))) are chosen, all equally likely; of those chosen, 80 % become the mask
    token, 10 % a random one, 10 % stay. end: the text's end token counts among the n, so that a model learns where to end;
    other special tokens are never chosen. count_special: they count among the n all the same, as in BERT's published code,
    whose `most` is 20 of 128 tokens. split: (mask, random) shares.
    """

    stream: str = "text"
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    most: Annotated[int, Field(ge=1)] = 3
    end: bool = True
    count_special: bool = False
    split: tuple[float, float] = (0.8, 0.1)

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        tokenizer = makers[self.stream].tokenizer  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            item, draw = sample[self.stream], rng(k)
            ids, candidates = item["data"].copy(), item["words"] >= 0
            if self.end and ids[-1] == tokenizer.end:
                candidates[-1] = True
            places = np.flatnonzero(candidates)
            target = np.full(len(ids), IGNORE, np.int64)
            num = len(ids) if self.count_special else len(places)
            num = min(self.most, max(1, round(self.rate * num)), len(places))
            at = draw.permutation(places)[:num]
            target[at] = ids[at]
            mask, other = self.split
            drawn, random_ids = draw.random(num), draw.choice(tokenizer.plain_ids, num)
            ids[at] = np.where(
                drawn < mask, tokenizer.mask, np.where(drawn < mask + other, random_ids, ids[at])
            )
            sample[self.stream] = {**item, "data": ids, f"{TARGET}ids": target}
        return samples
