from __future__ import annotations

from tests.models.small_system import REGIONS, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.systems.regions.interbert import InterBert

LAYERS = {"joint_layers": 1, "word_layers": 1, "region_layers": 1}
SYSTEM = SmallSystem(
    lambda: InterBert(
        vocab_size=WORDS, width=32, heads=2, max_text_length=12, dropout=0.0, **LAYERS, **REGIONS
    ),
    [MaskedLm(), Match(), RegionClass(which="obj", regions="masked", matched_only=True)],
    ("regions", "text"),
)
