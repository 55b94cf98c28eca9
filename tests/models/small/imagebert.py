from __future__ import annotations

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.systems.regions.imagebert import ImageBert

SYSTEM = SmallSystem(
    lambda: ImageBert(vocab_size=WORDS, dropout=0.0, **SMALL, **REGIONS),
    [
        MaskedLm(),
        RegionClass(which="obj", regions="masked", confidence=False),
        RegionMse(),
        Match(),
    ],
    ("regions", "text"),
)
