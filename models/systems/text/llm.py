"""Language model: one of transformers as it is, such as OPT or T5, to be trained, or read by a larger model.

Zhang et al. 2022 (OPT), https://arxiv.org/abs/2205.01068; Raffel et al. 2020 (T5), https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlpipe.models.blocks.frozen.language_model import DECODERS, ENCODER_DECODERS, LanguageModel
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Llm(Model):
    """llm: transformers' config of it, with its `model_type`. vocab_size, start, end: those of the tokenizer, which may
    have fewer tokens than the model.

    The encoder of T5 reads the start of each text, its decoder the rest, if the maker of texts is
    `prefix_text:PrefixText`; else the encoder reads the end token alone.
    """

    STREAMS = {"text": "text:Text"}  # noqa: RUF012
    FORMATS = (*DECODERS, *ENCODER_DECODERS)

    def __init__(
        self, *, llm: Mapping[str, Any], vocab_size: int, start: int, end: int, max_text_length: int = 512
    ) -> None:
        super().__init__()
        self.llm = LanguageModel(llm, vocab_size, end)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        if not self.llm.encodes:
            return self.llm.hidden(text.data)
        return self.llm.translated(text.data, None, text.extra)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.llm.predict(hidden)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = self.llm.never_written(c.start, c.end, c.vocab_size)
        return TextRules(c.start, c.end, never, c.max_text_length)

    def start_alone(self, num: int, room: int) -> Any:
        return self.llm.start(None, num)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        return self.llm.step(ids, cache)
