"""BERT: masked words and next sentences. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.post_norm import NORM_EPS, init_bert
from vlpipe.models.blocks.text import Pooler, WordHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.text_capabilities import ClassifiesTexts, FindsSpans


class Bert(Model):
    """Defaults are those of BERT-base. `match` is next-sentence prediction: of texts whose `extra["segment"]` is 0 for the
    first sentence and 1 for the second; without it, all tokens are of the first.

    num_classes: of a head for finetuning on one or two sentences (section 4.1); 1: a score; 0: no such head. finds_spans: a
    head for finetuning on questions about a text (section 4.2). Weights without these heads leave them as they start.
    """

    STREAMS = {"text": "text:Text"}  # noqa: RUF012
    FORMATS = ("bert",)
    CHAIN = ("encoder.blocks",)

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp_width: int | None = None,
        max_text_length: int = 512,
        num_types: int = 2,
        dropout: float = 0.1,
        norm_eps: float = NORM_EPS,
        init_std: float = 0.02,
        num_classes: int = 0,
        finds_spans: bool = False,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"mlp_width": mlp_width, "num_types": num_types}
        self.encoder = BertEncoder(
            vocab_size, max_text_length, width, layers, heads, norm_eps=norm_eps, dropout=dropout, **sizes
        )
        self.pooler = Pooler(width)
        self.word_head = WordHead(width, vocab_size, tied=self.encoder.embed.words, norm_eps=norm_eps)
        self.match_head = nn.Linear(width, 2)
        self.class_head = nn.Linear(width, num_classes) if num_classes else None
        self.span_head = nn.Linear(width, 2) if finds_spans else None
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        found, c = super().streams(), self.config
        if c.finds_spans:
            found["text"]["use"] = "tasks.question:QuestionInContext"
        elif c.num_classes:
            found["text"]["use"] = "tasks.sentences:Sentences"
            label = {"use": "label:Label", "num_classes": c.num_classes}
            found["label"] = label if c.num_classes > 1 else {"use": "tasks.sentences:Score"}
        return found

    def lacks(self, capability: type) -> bool:
        heads = {ClassifiesTexts: self.class_head, FindsSpans: self.span_head}
        return capability in heads and heads[capability] is None

    def word_hidden(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.encoder(text.data, text.mask, text.extra.get("segment"))

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def match(self, out: Outputs) -> Tensor:
        """(B, 2): [not the next sentence, the next]. BERT's own head has the other order; `layouts.bert` swaps it."""
        return self.match_head(self.pooler(out.word_hidden))

    def text_logits(self, out: Outputs) -> Tensor:
        """(B, num_classes), of the pooled first token."""
        assert self.class_head is not None
        pooled = F.dropout(self.pooler(out.word_hidden), self.config.dropout, self.training)
        return self.class_head(pooled)

    def span_logits(self, out: Outputs) -> Tensor:
        """(B, L, 2)."""
        assert self.span_head is not None
        return self.span_head(out.word_hidden)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the rows of a larger vocabulary: a `Tokenizer` appends [DEC] and [ENC] to BERT's."""
        for name in ("encoder.embed.words.weight", "word_head.decoder.weight", "word_head.decoder.bias"):
            if name in state:
                own = self.state_dict()[name]
                state = {**state, name: torch.cat([state[name], own[len(state[name]) :]])}
        heads = {n: v for n, v in self.state_dict().items() if n.startswith(("class_head.", "span_head."))}
        return {**heads, **state}
