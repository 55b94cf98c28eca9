from __future__ import annotations

from tests.models.small.univl import video
from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.video.cross_nce import CrossNce
from vlpipe.models.objectives.video.frame_nce import FrameNce
from vlpipe.models.systems.video.cbt import Cbt

SYSTEM = SmallSystem(
    lambda: Cbt(
        vocab_size=WORDS,
        feat_dim=10,
        width=SMALL["width"],
        heads=2,
        text_layers=1,
        video_layers=1,
        cross_layers=1,
        max_text_length=12,
        max_frames=4,
        dropout=0.0,
    ),
    [FrameNce(), CrossNce(chunk=3)],
    ("video", "text"),
    extra=video,
)
