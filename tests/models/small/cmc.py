from __future__ import annotations

import torch

from tests.models.small_system import RESNET, ROWS, SmallSystem
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.images.memory_bank import MemoryBank
from vlpipe.models.systems.pretext.cmc import Cmc

SYSTEM = SmallSystem(
    lambda: Cmc(num_rows=2 * ROWS, **RESNET),
    [MemoryBank(num_negatives=6)],
    ("image", "row"),
    extra=lambda rank: {"row": Stream(torch.arange(ROWS) + rank * ROWS)},
)
