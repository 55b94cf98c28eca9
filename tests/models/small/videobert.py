from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.video.videobert import VideoBert

SYSTEM = SmallSystem(
    lambda: VideoBert(
        vocab_size=WORDS, start=1, end=2, mask=3, num_codes=9, max_video_length=8, dropout=0.0, **SMALL
    ),
    [MaskedLm(), Match()],
    ("video", "text"),
)
