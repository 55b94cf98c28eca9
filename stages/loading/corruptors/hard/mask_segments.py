"""InterBERT's masked segments of words. Lin et al. 2020, https://arxiv.org/abs/2003.13198, section 3.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.mask_text import Ints, MaskText


@dataclass(frozen=True, kw_only=True)
class MaskSegments(MaskText):
    """As `MaskText`, but each token (whole_words: each word) is an anchor with probability `rate`, at least one per text;
    with an anchor 0 to `following` tokens after it are masked, each number equally likely. Segments may meet.
    """

    rate: float = 0.1
    following: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.following < 0:
            raise ValueError(f"mask_segments: following must be at least 0, got {self.following}")

    def _choose(self, words: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        units = words if self.whole_words else np.where(words >= 0, np.arange(len(words)), -1)
        names = np.unique(units[units >= 0])
        if not len(names):
            return np.zeros(len(words), np.bool_)
        anchors = np.flatnonzero(rng.random(len(names)) < self.rate)
        if not len(anchors) and self.at_least_one:
            anchors = rng.choice(len(names), 1)
        lengths = 1 + rng.integers(self.following + 1, size=len(anchors))
        picked = np.zeros(len(names), np.bool_)
        for start, length in zip(anchors, lengths, strict=True):
            picked[start : start + length] = True
        return np.isin(units, names[picked])
