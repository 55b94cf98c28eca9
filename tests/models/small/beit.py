from __future__ import annotations

from tests.models.small_system import VIT, SmallSystem
from vlpipe.models.objectives.images.masked_codes import MaskedImageCodes
from vlpipe.models.systems.images.beit import Beit

SYSTEM = SmallSystem(
    lambda: Beit(num_codes=9, drop_path=0.0, **VIT), [MaskedImageCodes()], ("image",), image="coded"
)
