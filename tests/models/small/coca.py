from __future__ import annotations

from tests.models.small_system import WORDS, SmallSystem
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.coca import Coca

SYSTEM = SmallSystem(
    lambda: Coca(
        vocab_size=WORDS,
        start=1,
        end=2,
        image_size=32,
        patch_size=8,
        width=32,
        heads=2,
        vision_layers=2,
        unimodal_layers=1,
        multimodal_layers=2,
        max_text_length=12,
        queries=6,
    ),
    [InfoNce(), Lm()],
    ("image", "text"),
)
