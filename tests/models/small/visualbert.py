from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.regions.visualbert import VisualBert

SYSTEM = SmallSystem(
    lambda: VisualBert(vocab_size=WORDS, feat_dim=10, dropout=0.0, **SMALL),
    [MaskedLm(), Match()],
    ("regions", "text"),
)
