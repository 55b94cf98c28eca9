from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.experts.balance import ExpertBalance
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.text.expert_lm import ExpertLm, Layer

SYSTEM = SmallSystem(
    lambda: ExpertLm(
        vocab_size=WORDS, start=1, end=2, experts=4, router={"kind": "switch", "jitter": 0.0}, **SMALL
    ),
    [Lm(), ExpertBalance()],
    ("text",),
    units=(Layer,),
)
