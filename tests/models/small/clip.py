from __future__ import annotations

from tests.models.small_system import TOWERS, WORDS, SmallSystem
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.systems.image_text.clip import Clip

SYSTEM = SmallSystem(
    lambda: Clip(vocab_size=WORDS, end=2, embed_dim=16, **TOWERS), [InfoNce()], ("image", "text")
)
