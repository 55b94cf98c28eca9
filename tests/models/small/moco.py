from __future__ import annotations

from tests.models.small_system import RESNET, SmallSystem
from vlpipe.models.objectives.images.moco import Moco as MocoLoss
from vlpipe.models.systems.images.moco import Moco

SYSTEM = SmallSystem(
    lambda: Moco(**RESNET), [MocoLoss(queue_size=8, random_start=True)], ("image", "second"), taught=True
)
