"""UNITER: one BERT over words and image regions. Chen et al. 2020, https://arxiv.org/abs/1909.11740."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, NORM_EPS, PostNormLayer, Transform, init_bert
from vlpipe.models.blocks.regions import seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, MatchesFirst, class_head


class RegionEmbed(nn.Module):
    """Features (B, R, feat_dim) and boxes (B, R, 4) -> (B, R, width): the norm of the sum of both, each projected and
    normed, and of the visual type. A masked feature is replaced by a learned one.
    """

    def __init__(self, feat_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.mask = nn.Parameter(torch.zeros(feat_dim))
        self.feat, self.box = nn.Linear(feat_dim, width), nn.Linear(7, width)
        self.feat_norm, self.box_norm, self.norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3))

    def forward(self, regions: Stream, kind: Tensor) -> Tensor:
        """kind: (width,), the embedding of the visual type."""
        feats = regions.data
        if "masked" in regions.target:  # the corruptor has put zeros there
            feats = feats + regions.target["masked"][..., None].to(feats) * self.mask
        corners = regions.extra["box"]
        sides = corners[..., 2:] - corners[..., :2]
        place = torch.cat([corners, sides, sides.prod(-1, keepdim=True)], dim=-1)  # x1, y1, x2, y2, w, h, w h
        x = self.norm(self.feat_norm(self.feat(feats)) + self.box_norm(self.box(place)) + kind)
        return F.dropout(x, self.dropout, self.training)


class Uniter(MatchesFirst, FillsRegions):
    """Defaults are those of UNITER-base, whose text is cased. Features are predicted by the transpose of their projection.

    The stream `regions` has features of `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1. Words, then regions,
    are one sequence; padding is hidden as keys, so it changes nothing. num_objects: with the background.
    """

    CHAIN = ("blocks",)
    REGION_KINDS = ("feat", "obj")

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = RegionEmbed(feat_dim, width, dropout)
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.pooler = Pooler(width)
        self.match_head = nn.Linear(width, 2)
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        self.feat_transform, self.feat_bias = Transform(width), nn.Parameter(torch.zeros(feat_dim))
        self.obj_head = class_head(width, num_objects)
        init_bert(self, init_std)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        assert self.words.types is not None
        assert text.mask is not None
        x = torch.cat([self.words(text.data), self.regions(image, self.words.types.weight[1])], dim=1)
        keys = torch.cat([text.mask, seen_regions(image)], dim=1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        length = text.data.shape[1]
        return {"text": x[:, :length], "regions": x[:, length:]}

    def predict_regions(self, hidden: Tensor, kind: str) -> Tensor:
        if kind == "feat":
            return F.linear(self.feat_transform(hidden), self.regions.feat.weight.t(), self.feat_bias)
        return super().predict_regions(hidden, kind)
