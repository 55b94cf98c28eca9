from __future__ import annotations

import torch

from tests.models.small_system import SmallSystem
from vlpipe.models.objectives.images.colours import ColourClasses
from vlpipe.models.systems.pretext.colorization import Colorization


def small() -> Colorization:
    model = Colorization(image_size=32, width=2)
    model.bins.prior.data.copy_(torch.full_like(model.bins.prior, 1 / model.bins.num_bins))
    return model


SYSTEM = SmallSystem(small, [ColourClasses()], ("image",))
