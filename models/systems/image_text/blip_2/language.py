"""BLIP-2's second stage: what the queries say of an image stands before the words of a frozen language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlpipe.models.blocks.frozen.language_model import LanguageModel
from vlpipe.models.blocks.post_norm import INIT_STD, init_bert
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.blip_2.model import parts_of


class Blip2Llm(Model):
    """The second stage. llm: transformers' config of the language model, with its `model_type`; its weights come through
    `init_parts`, those of `vision` and `qformer` from the first stage. Freeze `llm.*`, and of `vision` what the first stage
    does.

    A decoder (OPT) reads the projected queries, then the text. The encoder of T5 reads them and the start of the text
    (with the maker `prefix_text:PrefixText`; else the end token), its decoder the rest. The tokenizer is the language
    model's. image_token: the id that stands for a query in transformers; None for the first that the tokenizer has no
    token for. Other parameters: see `Blip2`.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("query_tokens",)}  # noqa: RUF012
    FORMATS = ("blip-2",)

    def __init__(
        self,
        *,
        llm: Mapping[str, Any],
        vocab_size: int,
        start: int,
        end: int,
        image_size: int = 224,
        patch_size: int = 14,
        vision_width: int = 1408,
        vision_layers: int = 39,
        vision_heads: int = 16,
        vision_mlp: int = 6144,
        vision_norm_eps: float = 1e-6,
        clip_vision: bool = False,
        activation: str = "gelu",
        queries: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        cross_every: int = 2,
        mlp_width: int | None = None,
        max_text_length: int = 128,
        dropout: float = 0.1,
        image_token: int | None = None,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.vision, self.qformer = parts_of(self.config)
        self.llm = LanguageModel(llm, vocab_size, end)
        self.projection = nn.Linear(width, self.llm.width)
        init_bert(self.projection, init_std)

    def query_tokens(self, out: Outputs) -> Tensor:
        """(B, Q, width of the language model): what it sees of an image."""
        return self.projection(self.qformer(self.vision(out.stream("image").data))[0])

    def decoder_hidden(self, out: Outputs) -> Tensor:
        text, (image, rows) = out.stream("text"), out.unpaired("query_tokens", "image")
        image = image if rows is None else image[rows]
        if self.llm.encodes:
            return self.llm.translated(text.data, image, text.extra)
        return self.llm.hidden(text.data, image)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.llm.predict(hidden)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = self.llm.never_written(c.start, c.end, c.vocab_size)
        return TextRules(c.start, c.end, never, c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any:
        return self.llm.start(images, repeats)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        return self.llm.step(ids, cache)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.vision.fitted(state, "vision.")
