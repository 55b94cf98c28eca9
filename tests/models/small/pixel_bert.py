from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.image_text.pixel_bert import PixelBert

CNN = {"image_size": 32, "cnn_layers": [1, 1], "cnn_width": 4, "stem": "small"}
SYSTEM = SmallSystem(
    lambda: PixelBert(vocab_size=WORDS, dropout=0.0, **CNN, **SMALL),
    [MaskedLm(), Match()],
    ("image", "text"),
    image="hidden",
)
