"""InterBERT's masked segments of words. Lin et al. 2020, https://arxiv.org/abs/2003.13198, section 3.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.mask_text import MaskText


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

    def _picked(self, num: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        picked = super()._picked(num, rng)
        anchors = np.flatnonzero(picked)
        lengths = 1 + rng.integers(self.following + 1, size=len(anchors))
        for start, length in zip(anchors, lengths, strict=True):
            picked[start : start + length] = True
        return picked
