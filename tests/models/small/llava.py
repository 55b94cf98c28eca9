from __future__ import annotations

from typing import Any

from tests.models.small_system import WORDS, SmallSystem
from vlpipe.models.objectives.pairs.answer_lm import AnswerLm
from vlpipe.models.systems.image_text.llava import Llava

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}

SYSTEM = SmallSystem(
    lambda: Llava(
        llm=LLAMA,
        vocab_size=WORDS,
        start=1,
        end=2,
        image_size=32,
        patch_size=8,
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        max_text_length=12,
    ),
    [AnswerLm()],
    ("image", "text"),
)
