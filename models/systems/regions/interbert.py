"""InterBERT: one transformer over regions and words, then one for each of them. Lin et al. 2020, https://arxiv.org/abs/2003.13198."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, PostNormLayer, init_bert
from vlpipe.models.blocks.regions import SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import TextEmbed, WordHead
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import MatchesBoth, class_head


class InterBert(MatchesBoth):
    """Defaults are the paper's: 6 joint layers, then 6 of words and 6 of regions, all of BERT-base's size.

    The stream `regions` has features of `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1; before them is the
    whole image, whose feature is their mean. In the joint layers regions, then words, are one sequence. `match` reads the
    product of the first word and the whole image, each projected with ReLU, as in the released code. num_objects: the
    detector's classes and background.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        width: int = 768,
        heads: int = 12,
        joint_layers: int = 6,
        word_layers: int = 6,
        region_layers: int = 6,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, width, dropout, whole="all")
        self.joint_blocks, self.word_blocks, self.region_blocks = (
            nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(num))
            for num in (joint_layers, word_layers, region_layers)
        )
        self.word_pool, self.region_pool = nn.Linear(width, width), nn.Linear(width, width)
        self.match_head = nn.Linear(width, 2)
        self.word_head = WordHead(width, vocab_size, tied=self.words.words)
        self.obj_head = class_head(width, num_objects)
        init_bert(self, init_std)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of words (B, L, width), and of the whole image and regions (B, R + 1, width)."""
        text, image = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        assert self.words.types is not None
        seen = seen_regions(image, whole=True)
        regions = self.regions(image, self.words.types.weight[1])
        x = torch.cat([regions, self.words(text.data)], dim=1)
        keys = torch.cat([seen, text.mask], dim=1)[:, None, None, :]
        for block in self.joint_blocks:
            x = block(x, keys)
        regions, words = x[:, : seen.shape[1]], x[:, seen.shape[1] :]
        for block in self.word_blocks:
            words = block(words, text.mask[:, None, None, :])
        for block in self.region_blocks:
            regions = block(regions, seen[:, None, None, :])
        return {"text": words, "regions": regions}
