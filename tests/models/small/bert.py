from __future__ import annotations

from tests.models.small_system import SMALL, WORDS, SmallSystem
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.text.bert import Bert

SYSTEM = SmallSystem(lambda: Bert(vocab_size=WORDS, dropout=0.0, **SMALL), [MaskedLm(), Match()], ("text",))
