from __future__ import annotations

from typing import Any

from tests.models.small_system import WORDS, SmallSystem
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.text.llm import Llm

OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "max_position_embeddings": 40,
    "dropout": 0.0,
}

SYSTEM = SmallSystem(
    lambda: Llm(llm=OPT, vocab_size=WORDS, start=1, end=2, max_text_length=12), [Lm()], ("text",)
)
