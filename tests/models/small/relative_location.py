from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.drawn_class import DrawnClass
from vlpipe.models.systems.pretext.relative_location import RelativeLocation


def pairs(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(rank)
    pixels = torch.randn(ROWS, 2, 3, 12, 12, generator=draw)
    drawn, colour = (
        torch.randint(most, size, generator=draw) for most, size in ((8, (ROWS,)), (3, (ROWS, 2)))
    )
    return {"pairs": Stream(pixels, extra={"colour": colour}, target={"drawn": drawn})}


SYSTEM = SmallSystem(
    lambda: RelativeLocation(image_size=48, patch_size=12, widths=[4, 8, 8, 8, 8], stem="small", width=16),
    [DrawnClass()],
    ("image",),
    image="pairs",
    extra=pairs,
)
