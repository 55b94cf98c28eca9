from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.next_codes import NextCodes
from vlpipe.models.systems.images.igpt import Igpt, IgptLayer


def codes(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(rank)
    return {"codes": Stream(torch.randint(0, 9, (ROWS, 16), generator=draw))}


SYSTEM = SmallSystem(
    lambda: Igpt(num_codes=9, image_size=4, width=32, layers=2, heads=2),
    [NextCodes()],
    ("image",),
    image="codes",
    units=(IgptLayer,),
    extra=codes,
)
