from __future__ import annotations

from tests.models.small_system import WORDS, SmallSystem
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.pairs.query_itc import QueryItc
from vlpipe.models.objectives.pairs.query_itm import QueryItm
from vlpipe.models.systems.image_text.blip_2 import Blip2

SYSTEM = SmallSystem(
    lambda: Blip2(
        vocab_size=WORDS,
        pad=0,
        start=1,
        end=2,
        dec=3,
        image_size=32,
        patch_size=8,
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        vision_mlp=64,
        queries=4,
        width=32,
        layers=2,
        heads=2,
        max_text_length=12,
        embed_dim=16,
        dropout=0.0,
    ),
    [QueryItc(), QueryItm(), Lm()],
    ("image", "text"),
)
