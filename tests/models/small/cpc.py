from __future__ import annotations

from tests.models.small_system import SmallSystem
from vlpipe.models.objectives.images.cpc import Cpc as CpcLoss
from vlpipe.models.systems.pretext.cpc import Cpc

SYSTEM = SmallSystem(
    lambda: Cpc(
        image_size=32,
        patch_size=8,
        stride=8,
        layers=[1, 1],
        width=4,
        stem="small",
        context_width=8,
        context_layers=2,
        steps=2,
        skip=1,
    ),
    [CpcLoss(scale=0.1)],
    ("image",),
)
