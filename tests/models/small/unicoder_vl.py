from __future__ import annotations

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.systems.regions.unicoder_vl import UnicoderVl

SYSTEM = SmallSystem(
    lambda: UnicoderVl(vocab_size=WORDS, sep=2, dropout=0.0, **SMALL, **REGIONS),
    [
        MaskedLm(matched_only=True),
        Match(),
        RegionClass(which="obj", regions="masked", confidence=False, matched_only=True),
    ],
    ("regions", "text"),
)
