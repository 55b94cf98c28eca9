from __future__ import annotations

from tests.models.small_system import TOWERS, WORDS, SmallSystem
from vlpipe.models.objectives.sigmoid import Sigmoid
from vlpipe.models.systems.image_text.siglip import Siglip

SYSTEM = SmallSystem(lambda: Siglip(vocab_size=WORDS, pad=0, **TOWERS), [Sigmoid()], ("image", "text"))
