"""LXMERT: a language and an object encoder, and cross-modality layers in which each looks at the other.

Tan and Bansal 2019, https://arxiv.org/abs/1908.07490.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, CrossAttention, PostNormLayer, Transform, init_bert
from vlpipe.models.blocks.regions import MeanRegionEmbed
from vlpipe.models.blocks.text import Pooler, TextEmbed
from vlpipe.models.interface.capabilities import Answers
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions


class CrossLayer(nn.Module):
    """Cross-attention, by one module in both directions, then self-attention and feed-forward of each stream.

    cross_attention: False leaves the first step out, so that neither stream sees the other.
    """

    def __init__(self, width: int, heads: int, dropout: float, cross_attention: bool) -> None:
        super().__init__()
        self.cross = CrossAttention(width, width, heads, dropout) if cross_attention else None
        self.words = PostNormLayer(width, heads, dropout)
        self.regions = PostNormLayer(width, heads, dropout)

    def forward(
        self, words: Tensor, regions: Tensor, word_keys: Tensor | None, region_keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.cross is not None:
            to_words, to_regions = self.cross.keys_values(words), self.cross.keys_values(regions)
            words = self.cross(words, to_regions, region_keys)
            regions = self.cross(regions, to_words, word_keys)
        return self.words(words, word_keys), self.regions(regions, region_keys)


class Lxmert(FillsRegions):
    """Defaults are the paper's. num_answers: of question answering; 0 for no such head (the paper has 9,500). With
    one, the stream `answer` has the label of each row.

    The stream `regions` has features of `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1. Unlike in the
    released code, the embeddings of token 0, position 0 and type 0 are trained (there they are a `padding_idx`).
    cross_attention: False is a control in which neither stream sees the other.
    """

    FORMATS = ("lxmert",)
    REGION_KINDS = ("feat", "obj", "attr")

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1600,
        num_attributes: int = 400,
        num_answers: int = 0,
        width: int = 768,
        heads: int = 12,
        language_layers: int = 9,
        object_layers: int = 5,
        cross_layers: int = 5,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = MeanRegionEmbed(feat_dim, 4, width, dropout)
        self.language = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(language_layers))
        self.objects = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(object_layers))
        self.cross = nn.ModuleList(
            CrossLayer(width, heads, dropout, cross_attention) for _ in range(cross_layers)
        )
        self.pooler = Pooler(width)
        self.match_head = nn.Linear(width, 2)
        self.word_transform = Transform(width)
        self.word_bias = nn.Parameter(torch.zeros(vocab_size))  # its matrix is the word embedding
        self.region_transform = Transform(width)
        kinds = {"obj": num_objects, "attr": num_attributes, "feat": feat_dim}
        self.region_heads = nn.ModuleDict({kind: nn.Linear(width, num) for kind, num in kinds.items()})
        answers = nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width, eps=1e-12)
        self.answer_head = nn.Sequential(*answers, nn.Linear(2 * width, num_answers)) if num_answers else None
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        specs["regions"]["feat_dim"] = self.config.feat_dim
        if self.answer_head is not None:
            specs["answer"] = {"use": "answer:Answer", "num_answers": self.config.num_answers}
        return specs

    def lacks(self, capability: type) -> bool:
        return capability is Answers and self.answer_head is None

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        word_keys = None if text.mask is None else text.mask[:, None, None, :]
        region_keys = None if image.mask is None else image.mask[:, None, None, :]
        words = self.words(text.data, text.extra.get("segment"))
        regions = self.regions(image.data, image.extra["box"])
        for layer in self.language:
            words = layer(words, word_keys)
        for layer in self.objects:
            regions = layer(regions, region_keys)
        for layer in self.cross:
            words, regions = layer(words, regions, word_keys, region_keys)
        return {"text": words, "regions": regions}

    def pooled(self, out: Outputs) -> Tensor:
        """(B, width): tanh of a linear map of the first word, [CLS]."""
        return self.pooler(out.fused["text"])

    def match(self, out: Outputs) -> Tensor:
        return self.match_head(out.pooled)

    def answer(self, out: Outputs) -> Tensor:
        """Logits (B, num_answers) of the answer to a question. Raises ValueError if the model has no such head."""
        if self.answer_head is None:
            raise ValueError("Lxmert: this model answers no questions; set num_answers")
        return self.answer_head(out.pooled)

    def region_hidden(self, out: Outputs) -> Tensor:
        return self.region_transform(out.fused["regions"])
