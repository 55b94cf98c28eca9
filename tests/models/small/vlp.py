from __future__ import annotations

import torch

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem, streams
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.systems.regions.vlp import Vlp


def with_probabilities(rank: int) -> dict[str, Stream]:
    """Of 7 classes and background; and both attention masks."""
    found = streams(rank)
    text, regions = found["text"], found["regions"]
    prob = torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(rank))
    left = {"left_to_right": torch.tensor([True, False, True, True])}
    return {
        "text": Stream(text.data, text.mask, left, text.target),
        "regions": Stream(regions.data, regions.mask, {**regions.extra, "prob": prob}, regions.target),
    }


SYSTEM = SmallSystem(
    lambda: Vlp(vocab_size=WORDS, sep=2, mask=3, start=1, pad=0, dropout=0.0, **SMALL, **REGIONS),
    [MaskedLm(), Lm()],
    ("regions", "text"),
    extra=with_probabilities,
)
