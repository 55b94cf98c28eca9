"""A text as a source that is given and a target that is generated: prefix language models.

UNIMO generates fragments from within the text: `image_text.fragments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class SplitText:
    """Draws how many tokens of a text are given, the start token among them, from 1 to `share` of its tokens.

    Records target["prefix"] (B,), that number, and target["rest"] (B, L): at the last given token and those after it, the
    next one; IGNORE elsewhere. Tokens stay as they are: the model's attention hides those that come later. share: 0 gives
    the start token alone (captioning).
    """

    stream: str = "text"
    share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"split_text: share must be at least 0 and below 1, got {self.share}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            ids = item["data"]
            most = max(1, min(len(ids) - 1, int(self.share * len(ids))))
            prefix = int(rng(k).integers(1, most + 1))
            target = np.full(len(ids), IGNORE, np.int64)
            target[prefix - 1 : -1] = ids[prefix:]
            sample[self.stream] = {**item, f"{TARGET}prefix": np.int64(prefix), f"{TARGET}rest": target}
        return samples
