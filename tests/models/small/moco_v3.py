from __future__ import annotations

from tests.models.small_system import VIT, SmallSystem
from vlpipe.models.objectives.images.moco import MocoV3 as MocoV3Loss
from vlpipe.models.systems.images.moco_v3 import MocoV3

SYSTEM = SmallSystem(lambda: MocoV3(**VIT, hidden=16), [MocoV3Loss()], ("image", "second"), taught=True)
