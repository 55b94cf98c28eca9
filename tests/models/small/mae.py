from __future__ import annotations

from tests.models.small_system import SmallSystem
from vlpipe.models.objectives.pixel_mse import PixelMse
from vlpipe.models.systems.images.mae import Mae

SYSTEM = SmallSystem(
    lambda: Mae(
        image_size=32,
        patch_size=8,
        width=32,
        layers=2,
        heads=2,
        decoder_width=32,
        decoder_layers=1,
        decoder_heads=2,
    ),
    [PixelMse()],
    ("image",),
    image="hidden",
)
