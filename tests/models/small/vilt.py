from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.image_text.vilt import Vilt

SYSTEM = SmallSystem(
    lambda: Vilt(vocab_size=WORDS, image_size=32, patch_size=8, **SMALL),
    [MaskedLm(), Match()],
    ("image", "text"),
)
