from __future__ import annotations

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem
from vlpipe.models.blocks.regions import CoLayer
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.systems.regions.vilbert import VilBert

WIDTHS = {
    "region_width": 24,
    "region_heads": 2,
    "region_mlp_width": 24,
    "region_layers": 1,
    "co_width": 16,
    "co_heads": 2,
}
SYSTEM = SmallSystem(
    lambda: VilBert(vocab_size=WORDS, dropout=0.0, **SMALL, **REGIONS, **WIDTHS),
    [MaskedLm(matched_only=True), Match(), RegionClass(which="obj", regions="masked", matched_only=True)],
    ("regions", "text"),
    units=(CoLayer,),
)
