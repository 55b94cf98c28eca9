"""ViLBERT: BERT on words and a transformer on image regions, joined by co-attention. Lu et al. 2019, https://arxiv.org/abs/1908.02265."""

from __future__ import annotations

from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, PostNormLayer, init_bert
from vlpipe.models.blocks.regions import CoLayer, SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import TextEmbed, WordHead
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import MatchesBoth, class_head


class VilBert(MatchesBoth):
    """Defaults are the paper's, on BERT-base: the last half of the 12 layers of words take turns with 6 co-attention layers.

    The stream `regions` has features of `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1; before them is the
    whole image, whose feature is their mean. Layer i of co-attention comes before layer i of regions and before the layer of
    words of the same number from the end. `match` reads the product of the first word and the whole image, each projected to
    `co_width` with ReLU, as in the released code. num_objects: the detector's classes and background.
    cross_attention: False is a control in which neither stream sees the other.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        region_width: int = 1024,
        region_heads: int = 8,
        region_mlp_width: int | None = 1024,
        region_layers: int = 6,
        co_width: int = 1024,
        co_heads: int = 8,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        if region_layers > layers:
            raise ValueError(
                f"model: wanted at most as many region_layers as layers, got {region_layers} and {layers}"
            )
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, region_width, dropout, whole="all")
        self.word_blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.region_blocks = nn.ModuleList(
            PostNormLayer(region_width, region_heads, dropout, region_mlp_width) for _ in range(region_layers)
        )
        mlp_widths = 4 * width, region_mlp_width or 4 * region_width
        self.co_blocks = nn.ModuleList(
            CoLayer((width, region_width), mlp_widths, co_width, co_heads, dropout, cross_attention)
            for _ in range(region_layers)
        )
        self.joint_width = co_width
        self.word_pool, self.region_pool = nn.Linear(width, co_width), nn.Linear(region_width, co_width)
        self.match_head = nn.Linear(co_width, 2)
        self.word_head = WordHead(width, vocab_size, tied=self.words.words)
        self.obj_head = class_head(region_width, num_objects)
        init_bert(self, init_std)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of words (B, L, width), and of the whole image and regions (B, R + 1, region_width)."""
        text, image = out.stream("text"), out.stream("regions")
        word_keys = None if text.mask is None else text.mask[:, None, None, :]
        region_keys = seen_regions(image, whole=True)[:, None, None, :]
        words, regions = self.words(text.data, text.extra.get("segment")), self.regions(image)
        alone = len(self.word_blocks) - len(self.region_blocks)
        for block in self.word_blocks[:alone]:
            words = block(words, word_keys)
        own = zip(self.word_blocks[alone:], self.region_blocks, strict=True)
        for co_block, (word_block, region_block) in zip(self.co_blocks, own, strict=True):
            words, regions = co_block(words, regions, word_keys, region_keys)
            words, regions = word_block(words, word_keys), region_block(regions, region_keys)
        return {"text": words, "regions": regions}
