from __future__ import annotations

from tests.models.small_system import SmallSystem
from vlpipe.models.codebooks.dalle import DalleBlock
from vlpipe.models.codebooks.dalle_decoder import DalleDecoderBlock
from vlpipe.models.objectives.images.elb import Elb
from vlpipe.models.systems.images.dvae import Dvae

SYSTEM = SmallSystem(
    lambda: Dvae(num_codes=9, image_size=32, width=4, depth=1, code_width=8),
    [Elb(kl_steps=1, temperature_steps=1, noise=False)],
    ("image",),
    units=(DalleBlock, DalleDecoderBlock),
)
