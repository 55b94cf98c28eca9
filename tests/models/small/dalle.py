from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SMALL, WORDS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.next_codes import NextCodes
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.dalle import Dalle


def codes(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(rank)
    return {"codes": Stream(torch.randint(0, 9, (ROWS, 16), generator=draw))}


SYSTEM = SmallSystem(
    lambda: Dalle(vocab_size=WORDS, num_codes=9, grid=4, kernel=3, **SMALL),
    [Lm(), NextCodes()],
    ("text", "image"),
    image="codes",
    extra=codes,
)
