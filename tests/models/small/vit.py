from __future__ import annotations

from tests.models.small_system import VIT, SmallSystem
from vlpipe.models.objectives.images.classify import Classify
from vlpipe.models.systems.images.vit import Vit

SYSTEM = SmallSystem(lambda: Vit(num_classes=7, **VIT), [Classify()], ("image", "label"))
