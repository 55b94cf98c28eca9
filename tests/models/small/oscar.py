from __future__ import annotations

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.regions.oscar import Oscar

SYSTEM = SmallSystem(
    lambda: Oscar(vocab_size=WORDS, dropout=0.0, **SMALL, feat_dim=REGIONS["feat_dim"]),
    [MaskedLm(), Match()],
    ("regions", "text"),
)
