from __future__ import annotations

from tests.models.narrated import narrated
from tests.models.small_system import ROWS, WORDS, SmallSystem
from vlpipe.models.objectives.video.mil_nce import MilNce
from vlpipe.models.systems.video.mil_nce import MilNceModel

SYSTEM = SmallSystem(
    lambda: MilNceModel(vocab_size=WORDS, feat_dim=10, embed_dim=16, word_dim=8, text_width=32),
    [MilNce()],
    ("video", "text"),
    extra=lambda rank: dict(narrated(rank, rows=ROWS, clips=1, texts=3, words=WORDS).streams),
)
