"""VisualBERT: one BERT over two captions and image regions, as in one sentence. Li et al. 2019, https://arxiv.org/abs/1908.03557."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, NORM_EPS, PostNormLayer, init_bert
from vlpipe.models.blocks.regions import seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed, WordHead
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import MatchesFirst


class VisualBert(MatchesFirst):
    """Defaults are those of BERT-base and of the paper's features. Reads `[CLS] caption [SEP] caption [SEP] regions`.

    A region is its projected feature, the visual type 1 and the visual position 0; boxes are not read. The visual tables of
    types and positions start as copies of those of words, and one norm is of words and regions alike. `match`: whether the
    second caption is of the image, too. Regions have no positions of words, which VCR's data would tell.
    image: False is a control whose words see no region.
    """

    STREAMS = {"text": "text_pair:TextPair", "regions": "regions:Regions"}  # noqa: RUF012
    FORMATS = ("visual_bert",)
    CHAIN = ("blocks",)

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp_width: int | None = None,
        max_text_length: int = 512,
        dropout: float = 0.1,
        norm_eps: float = NORM_EPS,
        init_std: float = INIT_STD,
        image: bool = True,
    ) -> None:
        super().__init__()
        self.image = image
        self.words = TextEmbed(
            vocab_size, max_text_length, width, num_types=2, norm_eps=norm_eps, dropout=dropout
        )
        self.feat = nn.Linear(feat_dim, width)
        self.region_types, self.region_positions = (
            nn.Embedding(2, width),
            nn.Embedding(max_text_length, width),
        )
        self.blocks = nn.ModuleList(
            PostNormLayer(width, heads, dropout, mlp_width, norm_eps) for _ in range(layers)
        )
        self.word_head = WordHead(width, vocab_size, tied=self.words.words, norm_eps=norm_eps)
        self.pooler, self.match_head = Pooler(width), nn.Linear(width, 2)
        init_bert(self, init_std)
        assert self.words.types is not None
        self.region_types.load_state_dict(self.words.types.state_dict())
        self.region_positions.load_state_dict(self.words.positions.state_dict())

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        assert self.words.norm is not None
        seen = seen_regions(image)
        regions = self.feat(image.data) + self.region_positions.weight[0] + self.region_types.weight[1]
        regions = F.dropout(self.words.norm(regions), self.config.dropout, self.training)
        x = torch.cat([self.words(text.data, text.extra.get("segment")), regions], dim=1)
        keys = torch.cat([text.mask, seen if self.image else torch.zeros_like(seen)], dim=1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        length = text.data.shape[1]
        return {"text": x[:, :length], "regions": x[:, length:]}
