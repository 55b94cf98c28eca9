"""ERNIE-ViL: words and regions in two streams that attend to each other, trained to fill in scene graphs.

Yu et al. 2020, https://arxiv.org/abs/2006.16934. The network is ViLBERT's: Lu et al. 2019, https://arxiv.org/abs/1908.02265.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import (
    INIT_STD,
    CrossAttention,
    FeedForward,
    PostNormLayer,
    Transform,
    init_bert,
)
from vlpipe.models.blocks.regions import SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, class_head


class Bridge(nn.Module):
    """Co-attention: each stream attends to the other as it was, then a feed-forward part; (B, L, width) each."""

    def __init__(self, width: int, image_width: int, heads: int, image_heads: int, dropout: float) -> None:
        super().__init__()
        self.to_words = CrossAttention(width, image_width, heads, dropout)
        self.to_image = CrossAttention(image_width, width, image_heads, dropout)
        self.words, self.image = FeedForward(width, dropout), FeedForward(image_width, dropout, image_width)

    def forward(
        self, words: Tensor, image: Tensor, word_keys: Tensor, image_keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        mixed = self.to_words(words, self.to_words.keys_values(image), image_keys)
        return self.words(mixed), self.image(
            self.to_image(image, self.to_image.keys_values(words), word_keys)
        )


class ErnieVil(FillsRegions):
    """Defaults are those of ERNIE-ViL-base: 12 layers of words, 6 of regions, which follow 6 bridges.

    The stream `regions` has features of `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1. Bridges project to
    the width of the stream that attends, where ViLBERT has 1,024 for both; each stream's last layers come after the bridges.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        image_width: int = 1024,
        image_layers: int = 6,
        image_heads: int = 8,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if layers < image_layers:
            raise ValueError(f"ErnieVil: layers must be at least image_layers = {image_layers}, got {layers}")
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, image_width, dropout, whole="unmasked")
        self.language = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.vision = nn.ModuleList(
            PostNormLayer(image_width, image_heads, dropout, image_width) for _ in range(image_layers)
        )
        sizes = width, image_width, heads, image_heads, dropout
        self.bridges = nn.ModuleList(Bridge(*sizes) for _ in range(image_layers))
        self.word_pooler, self.image_pooler = Pooler(width), Pooler(image_width)
        self.image_to_words = nn.Linear(image_width, width) if image_width != width else nn.Identity()
        self.match_head = nn.Linear(width, 2)
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        self.obj_head = class_head(image_width, num_objects)
        init_bert(self, init_std)

    def both(self, out: Outputs) -> tuple[Tensor, Tensor]:
        """Words (B, L, width); the whole image and its regions (B, 1 + R, image_width)."""
        text, stream = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        word_keys = text.mask[:, None, None, :]
        image_keys = seen_regions(stream, whole=True)[:, None, None, :]
        words, image = self.words(text.data, text.extra.get("segment")), self.regions(stream)
        alone = len(self.language) - len(self.vision)
        for layer in self.language[:alone]:
            words = layer(words, word_keys)
        for bridge, own, other in zip(self.bridges, self.language[alone:], self.vision, strict=True):
            words, image = bridge(words, image, word_keys, image_keys)
            words, image = own(words, word_keys), other(image, image_keys)
        return words, image

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        return {"text": out.both[0], "regions": out.both[1][:, 1:]}

    def pooled(self, out: Outputs) -> Tensor:
        """(B, width): the product of the pooled first word, [CLS], and whole image."""
        words, image = out.both
        return self.word_pooler(words) * self.image_to_words(self.image_pooler(image))

    def match(self, out: Outputs) -> Tensor:
        return self.match_head(out.pooled)
