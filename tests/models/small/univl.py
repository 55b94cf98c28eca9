from __future__ import annotations

import torch

from tests.models.narrated import narrated
from tests.models.small_system import ROWS, SMALL, WORDS, SmallSystem
from vlpipe.models.blocks.clips.writer import WriterLayer
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.video.align import Align
from vlpipe.models.objectives.video.frame_nce import FrameNce
from vlpipe.models.objectives.video.joint_mil import JointMil
from vlpipe.models.objectives.video.reconstruct import Reconstruct
from vlpipe.models.systems.video.univl import UniVl


def video(rank: int) -> dict[str, Stream]:
    found = narrated(rank, rows=ROWS, clips=1).stream("video")
    masked = torch.zeros(ROWS, 1, 4, dtype=torch.bool)
    masked[:, :, 0] = True
    data = found.data.masked_fill(masked[..., None], 0)
    return {"video": Stream(data, found.mask, target={"masked": masked, "feat": found.data})}


SYSTEM = SmallSystem(
    lambda: UniVl(
        vocab_size=WORDS,
        start=1,
        end=2,
        pad=0,
        unk=3,
        mask=4,
        feat_dim=10,
        width=SMALL["width"],
        heads=2,
        text_layers=1,
        video_layers=1,
        cross_layers=1,
        decoder_layers=1,
        max_text_length=12,
        max_frames=4,
        dropout=0.0,
    ),
    [JointMil(), MaskedLm(), FrameNce(), Align(chunk=3), Reconstruct()],
    ("video", "text"),
    units=(WriterLayer,),
    extra=video,
)
