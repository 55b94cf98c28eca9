from __future__ import annotations

from tests.models.small_system import WORDS, SmallSystem
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.blip.config import BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip

SYSTEM = SmallSystem(
    lambda: Blip(
        BlipConfig(
            vocab_size=WORDS,
            pad=0,
            cls=1,
            sep=2,
            dec=3,
            enc=4,
            image_size=32,
            patch_size=8,
            vision_width=32,
            vision_layers=2,
            vision_heads=2,
            text_width=32,
            text_layers=2,
            text_heads=2,
            max_text_length=12,
            embed_dim=16,
            dropout=0.0,
        )
    ),
    [Itc(queue_size=0), Itm(), Lm()],
    ("image", "text"),
    taught=True,
)
