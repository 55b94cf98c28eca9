from __future__ import annotations

from tests.models.narrated import narrated
from tests.models.small_system import ROWS, WORDS, SmallSystem
from vlpipe.models.objectives.video.max_margin import MaxMargin
from vlpipe.models.systems.video.gated_embeddings import GatedEmbeddings

SYSTEM = SmallSystem(
    lambda: GatedEmbeddings(vocab_size=WORDS, feat_dims=[6, 4], word_dim=8, embed_dim=16),
    [MaxMargin()],
    ("video", "text"),
    extra=lambda rank: dict(narrated(rank, rows=ROWS, words=WORDS).streams),
)
