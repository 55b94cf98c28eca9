from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.codebooks.base import MEAN, STD
from vlpipe.models.codebooks.dalle import DalleBlock
from vlpipe.models.codebooks.dalle_decoder import DalleDecoderBlock
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.elb import Elb
from vlpipe.models.systems.images.dvae import Dvae


def pictures(rank: int) -> dict[str, Stream]:
    """Pixels from 0 to 1, normalised."""
    draw = torch.Generator().manual_seed(rank)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return {"pictures": Stream((torch.rand(ROWS, 3, 32, 32, generator=draw) - mean) / std)}


SYSTEM = SmallSystem(
    lambda: Dvae(num_codes=9, image_size=32, width=4, depth=1, code_width=8),
    [Elb(kl_steps=1, temperature_steps=1, noise=False)],
    ("image",),
    image="pictures",
    units=(DalleBlock, DalleDecoderBlock),
    extra=pictures,
)
