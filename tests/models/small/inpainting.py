from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.holes import AdversarialHole, HoleError
from vlpipe.models.systems.pretext.inpainting import ContextEncoder


def holes(rank: int) -> dict[str, Stream]:
    pixels = torch.randn(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    hidden, counted = torch.zeros(ROWS, 32, 32, dtype=torch.bool), torch.zeros(ROWS, 32, 32)
    hidden[:, 9:23, 9:23] = True
    counted[:, 8:24, 8:24] = 10
    return {
        "holed": Stream(pixels, extra={"hidden": hidden}, target={"counted": counted.masked_fill(hidden, 1)})
    }


SYSTEM = SmallSystem(
    lambda: ContextEncoder(image_size=32, bottleneck=16, encoder_width=4, decoder_width=4),
    [HoleError(), AdversarialHole(width=4, share=0.1)],
    ("image",),
    image="holed",
    extra=holes,
)
