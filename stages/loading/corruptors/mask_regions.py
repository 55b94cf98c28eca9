"""Masked regions: LXMERT, UNITER, ViLBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MaskRegions:
    """Masks the features of regions; boxes stay. Records target["masked"] (B, R) bool and target["feat"], the originals.

    Each region is chosen with probability `rate`, at least `at_least` per sample (UNITER: 1). split: (zero, random) shares
    of those chosen: a feature of zeros, or that of a random region of another sample of the micro-batch (LXMERT draws from
    the whole data set); the rest stay. LXMERT: 0.8, 0.1; UNITER: 1, 0; ViLBERT: 0.9, 0.
    """

    stream: str = "regions"
    rate: float = 0.15
    at_least: int = 0
    split: tuple[float, float] = (0.8, 0.1)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"mask_regions: rate must be between 0 and 1, got {self.rate}")
        if self.at_least < 0:
            raise ValueError(f"mask_regions: at_least must be at least 0, got {self.at_least}")
        if min(self.split) < 0 or sum(self.split) > 1:
            raise ValueError(f"mask_regions: split must be two shares of a sum up to 1, got {self.split}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        feats = [sample[self.stream]["data"] for sample in samples]
        for k, sample in enumerate(samples):
            masked, data = self._masked(feats, k, rng(k))
            kept = {f"{TARGET}masked": masked, f"{TARGET}feat": feats[k]}
            sample[self.stream] = {**sample[self.stream], "data": data, **kept}
        return samples

    def _masked(
        self, feats: list[npt.NDArray[np.float32]], k: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        num = len(feats[k])
        masked = rng.random(num) < self.rate
        if masked.sum() < self.at_least:
            masked[rng.permutation(num)[: self.at_least]] = True
        data, (zero, other) = feats[k].copy(), self.split
        for at in np.flatnonzero(masked):
            draw = rng.random()
            if draw < zero:
                data[at] = 0
            elif draw < zero + other and len(feats) > 1:
                sample = (k + 1 + int(rng.integers(len(feats) - 1))) % len(feats)
                data[at] = feats[sample][int(rng.integers(len(feats[sample])))]
        return masked, data
