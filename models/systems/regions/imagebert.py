"""ImageBERT: one BERT over words and regions. Qi et al. 2020, https://arxiv.org/abs/2001.07966. No code was published."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, PostNormLayer, init_bert
from vlpipe.models.blocks.regions import SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed, WordHead
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, MatchesFirst, class_head


class ImageBert(MatchesFirst, FillsRegions):
    """Defaults are those of BERT-base. Reads `[CLS] words [SEP] regions`.

    A region is the norm of the sum of its projected feature and box (x1, y1, x2, y2, area, from 0 to 1), of the embedding of
    the visual segment, and of a position that is the same for all regions. cross_attention: False is a control in which
    neither stream sees the other.
    """

    REGION_KINDS = ("feat", "obj")

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1600,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, width, dropout)
        self.region_position = nn.Parameter(init_std * torch.randn(width))
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.pooler, self.match_head = Pooler(width), nn.Linear(width, 2)
        self.word_head = WordHead(width, vocab_size, tied=self.words.words)
        kinds = {"obj": num_objects, "feat": feat_dim}
        self.region_heads = nn.ModuleDict({kind: class_head(width, num) for kind, num in kinds.items()})
        init_bert(self, init_std)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        assert self.words.types is not None
        length, seen = text.data.shape[1], seen_regions(image)
        regions = self.regions(image, self.words.types.weight[1] + self.region_position)
        x = torch.cat([self.words(text.data), regions], dim=1)
        keys = torch.cat([text.mask, seen], dim=1)[:, None, None, :]
        if not self.config.cross_attention:
            is_text = torch.arange(x.shape[1], device=x.device) < length
            keys = keys & (is_text[:, None] == is_text[None, :])
        for block in self.blocks:
            x = block(x, keys)
        return {"text": x[:, :length], "regions": x[:, length:]}
