"""Unicoder-VL: one BERT over image regions and words. Li et al. 2019, https://arxiv.org/abs/1908.06066."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, PostNormLayer, init_bert
from vlpipe.models.blocks.regions import SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed, WordHead
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, MatchesFirst, class_head


class UnicoderVl(MatchesFirst, FillsRegions):
    """Defaults are those of BERT-base; no code was published. Reads `[CLS] regions [SEP] words [SEP]`; sep: id of [SEP].

    A region is the norm of the sum of its projected feature and box (x1, y1, x2, y2, area, from 0 to 1) and of the embedding
    of the token [IMG], a segment of its own; regions have no positions, as their boxes tell where they are. `match` is the
    score of [CLS]. cross_attention: False is a control in which neither stream sees the other.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        sep: int,
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
        self.cross_attention = cross_attention
        self.words = TextEmbed(vocab_size, max_text_length + 1, width, num_types=1, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, width, dropout)
        self.image_token = nn.Parameter(init_std * torch.randn(width))  # [IMG]
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.pooler, self.match_head = Pooler(width), nn.Linear(width, 2)
        self.word_head = WordHead(width, vocab_size, tied=self.words.words)
        self.obj_head = class_head(width, num_objects)
        init_bert(self, init_std)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of the text, its first [CLS], and of the regions. The [SEP] between them has none."""
        text, image = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        ids, mask = text.data, text.mask
        ends = ids.new_full((len(ids), 1), self.config.sep)
        embedded, end = self.words.words(ids), self.words.words(ends)
        embedded = torch.cat([embedded[:, :1], end, embedded[:, 1:]], dim=1)
        words = self.words(
            torch.cat([ends, ids], dim=1), words=embedded
        )  # only the number of these ids counts
        regions = self.regions(image, self.image_token)
        seen, num = seen_regions(image), image.data.shape[1]
        x = torch.cat([words[:, :1], regions, words[:, 1:]], dim=1)
        of_text = torch.cat([mask[:, :1], torch.zeros_like(seen), mask[:, :1], mask[:, 1:]], dim=1)
        of_image = torch.cat([mask.new_zeros(len(mask), 1), seen, torch.zeros_like(mask)], dim=1)
        keys = (of_text | of_image)[:, None, None, :]
        if not self.cross_attention:
            at = torch.arange(x.shape[1], device=x.device)
            is_image = ((at >= 1) & (at <= num))[None, None, :, None]
            keys = torch.where(is_image, of_image[:, None, None], of_text[:, None, None])
        for block in self.blocks:
            x = block(x, keys)
        return {"text": torch.cat([x[:, :1], x[:, num + 2 :]], dim=1), "regions": x[:, 1 : num + 1]}
