from __future__ import annotations

import torch

from tests.models.small_system import ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.denoise import Denoise
from vlpipe.models.systems.pretext.denoising_autoencoder import DenoisingAutoencoder


def noise(rank: int) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(rank)
    keep = (torch.rand(ROWS, 24, generator=draw) < 0.7).byte()
    added = 0.1 * torch.randn(ROWS, 24, generator=draw)
    pixels = torch.randn(ROWS, 3, 8, 8, generator=draw)
    return {"noisy": Stream(pixels, extra={"keep": keep, "added": added})}


SYSTEM = SmallSystem(
    lambda: DenoisingAutoencoder(image_size=8, widths=[24, 12]),
    [Denoise()],
    ("image",),
    image="noisy",
    extra=noise,
)
