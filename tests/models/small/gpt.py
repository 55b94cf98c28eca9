from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.text.gpt import Gpt, Layer

SYSTEM = SmallSystem(
    lambda: Gpt(vocab_size=WORDS, start=1, end=2, dropout=0.0, **SMALL), [Lm()], ("text",), units=(Layer,)
)
