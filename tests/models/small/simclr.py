from __future__ import annotations

from tests.models.small_system import RESNET, SmallSystem
from vlpipe.models.objectives.images.nt_xent import NtXent
from vlpipe.models.systems.images.simclr import SimClr

SYSTEM = SmallSystem(lambda: SimClr(**RESNET), [NtXent()], ("image", "second"))
