"""Masked codes: BERT's masking for streams of ids that are no words, such as VideoBERT's video tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MaskCodes:
    """Masks codes of a stream and records the originals in `target["ids"]` (B, L), IGNORE elsewhere.

    Each code is chosen with probability `rate`, at least one per sample that has any; of those chosen, 80 % become the mask
    id, 10 % a random code, 10 % stay. split: (mask, random) shares. The stream's maker has `num_codes` and `mask` (`Codes`).
    """

    stream: str = "video"
    rate: float = 0.15
    split: tuple[float, float] = (0.8, 0.1)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"mask_codes: rate must be between 0 and 1, got {self.rate}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        maker = makers[self.stream]
        num_codes, mask_id = maker.num_codes, maker.mask  # type: ignore[attr-defined]
        mask, other = self.split
        for k, sample in enumerate(samples):
            item, draw = sample[self.stream], rng(k)
            codes = item["data"]
            chosen = draw.random(len(codes)) < self.rate
            if len(codes) and not chosen.any():
                chosen[draw.integers(len(codes))] = True
            kind, random = draw.random(len(codes)), draw.integers(num_codes, size=len(codes))
            new = np.where(kind < mask, mask_id, np.where(kind < mask + other, random, codes))
            target = np.where(chosen, codes, IGNORE)
            sample[self.stream] = {**item, "data": np.where(chosen, new, codes), f"{TARGET}ids": target}
        return samples
