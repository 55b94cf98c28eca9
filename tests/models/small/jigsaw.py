from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.drawn_class import DrawnClass
from vlpipe.models.systems.pretext.jigsaw import Jigsaw


def tiles(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(rank)
    pixels = torch.randn(ROWS, 9, 3, 12, 12, generator=draw)
    return {"tiles": Stream(pixels, target={"drawn": torch.randint(7, (ROWS,), generator=draw)})}


SYSTEM = SmallSystem(
    lambda: Jigsaw(
        image_size=48,
        tile_size=12,
        num_orders=7,
        widths=[4, 8, 8, 8, 8],
        stem="small",
        groups=1,
        tile_width=8,
        width=16,
        dropout=0.0,
    ),
    [DrawnClass()],
    ("image",),
    image="tiles",
    extra=tiles,
)
