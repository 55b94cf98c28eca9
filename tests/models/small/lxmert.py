from __future__ import annotations

from tests.models.small_system import REGIONS, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass, RegionFeatures
from vlpipe.models.systems.regions.lxmert import CrossLayer, Lxmert

SYSTEM = SmallSystem(
    lambda: Lxmert(
        vocab_size=WORDS,
        num_attributes=5,
        width=32,
        heads=2,
        language_layers=1,
        object_layers=1,
        cross_layers=1,
        max_text_length=12,
        dropout=0.0,
        **REGIONS,
    ),
    [MaskedLm(), Match(), RegionFeatures(), RegionClass(which="obj")],
    ("regions", "text"),
    units=(CrossLayer,),
)
