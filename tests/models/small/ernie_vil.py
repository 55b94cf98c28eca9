from __future__ import annotations

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.systems.regions.ernie_vil import ErnieVil

SYSTEM = SmallSystem(
    lambda: ErnieVil(
        vocab_size=WORDS, dropout=0.0, image_width=24, image_layers=1, image_heads=2, **SMALL, **REGIONS
    ),
    [MaskedLm(), Match(), RegionClass(which="obj", regions="masked")],
    ("regions", "text"),
)
