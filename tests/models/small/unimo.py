from __future__ import annotations

import torch

from tests.models.small_system import REGIONS, ROWS, SMALL, WORDS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.pairs.variants import ContrastVariants
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.systems.regions.unimo import Unimo


def variants(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(7 + rank)
    extra = {
        "tokens": torch.ones(ROWS, 3, 5, dtype=torch.bool),
        "there": torch.tensor([[True, True, True], [True, True, False]]).repeat(2, 1),
        "positive": torch.tensor([[True, False, False]]).repeat(ROWS, 1),
    }
    return {
        name: Stream(torch.randint(5, WORDS, (ROWS, 3, 5), generator=draw), extra=extra)
        for name in ("variants", "retrieved")
    }


SYSTEM = SmallSystem(
    lambda: Unimo(vocab_size=WORDS, dropout=0.0, **SMALL, **REGIONS),
    [
        MaskedLm(),
        RegionMse(),
        RegionClass(which="obj", regions="masked"),
        ContrastVariants(retrieved=False),
    ],
    ("regions", "text", "variants", "retrieved"),
    extra=variants,
)
