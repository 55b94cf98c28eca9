"""Image regions: embeddings of a detector's features and boxes, and co-attention with words."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.post_norm import NORM_EPS, FeedForward
from vlpipe.models.interface.batch import Stream


class MeanRegionEmbed(nn.Module):
    """Features (B, R, feat_dim) and boxes (B, R, box_dim) -> (B, R, width): the mean of both after projection and norm.

    LXMERT's. A masked feature is zero, and so is the initial bias: the gradient of the norm, whose epsilon is 1e-12, is then
    up to 1e6 times as large as usual until the bias has moved, in the released code too. Clip the gradient.
    """

    def __init__(self, feat_dim: int, box_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.feat = nn.Linear(feat_dim, width)
        self.feat_norm = nn.LayerNorm(width, eps=1e-12)
        self.box = nn.Linear(box_dim, width)
        self.box_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, feats: Tensor, boxes: Tensor) -> Tensor:
        x = (self.feat_norm(self.feat(feats)) + self.box_norm(self.box(boxes))) / 2
        return F.dropout(x, self.dropout, self.training)


class SumRegionEmbed(nn.Module):
    """Regions (B, R, feat_dim) -> (B, R, width): the norm of the sum of the projected feature and box, and of what is added.

    The box is x1, y1, x2, y2 and its area, as fractions (ViLBERT, Unicoder-VL, ImageBERT, InterBERT, ERNIE-ViL, UNIMO).
    whole: a region before them is the whole image, (B, R + 1, width). Its feature is the mean of those of "all" regions, as
    they are after masking, or of the "unmasked" ones (target["masked"]); 0 if there is none. Lu et al. 2019 (ViLBERT),
    https://arxiv.org/abs/1908.02265.
    """

    def __init__(
        self,
        feat_dim: int,
        width: int,
        dropout: float,
        *,
        whole: Literal["all", "unmasked"] | None = None,
    ) -> None:
        super().__init__()
        self.dropout, self.whole = dropout, whole
        self.feat, self.box = nn.Linear(feat_dim, width), nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, regions: Stream, added: Tensor | float = 0.0) -> Tensor:
        """added: what is added before the norm, such as the embedding of a type (width,)."""
        feats, corners = regions.data, regions.extra["box"]
        area = (corners[..., 2:] - corners[..., :2]).prod(-1, keepdim=True)
        place = torch.cat([corners, area], dim=-1).to(feats)
        if self.whole is not None:
            feats = torch.cat([self._mean(regions), feats], dim=1)
            of_all = F.pad(place.new_ones(len(place), 1, 3), (2, 0))  # 0, 0, 1, 1, 1
            place = torch.cat([of_all, place], dim=1)
        x = self.norm(self.feat(feats) + self.box(place) + added)
        return F.dropout(x, self.dropout, self.training)

    def _mean(self, regions: Stream) -> Tensor:
        counted = seen_regions(regions)
        if self.whole == "unmasked" and "masked" in regions.target:
            counted = counted & ~regions.target["masked"]
        weight = counted[..., None].to(regions.data)
        return (regions.data * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def seen_regions(regions: Stream, whole: bool = False) -> Tensor:
    """Returns (B, R) bool, True for regions that are not padding. whole: with the image before them, (B, R + 1)."""
    seen = regions.mask
    if seen is None:
        seen = torch.ones(regions.data.shape[:2], dtype=torch.bool, device=regions.data.device)
    return torch.cat([seen.new_ones(len(seen), 1), seen], dim=1) if whole else seen


class CoAttention(nn.Module):
    """norm(x + attention): queries of x (B, L, width), keys and values of a context (B, N, context_width), which may be
    narrower or wider; both are projected to `inner` values in `num_heads` heads.

    Lu et al. 2019 (ViLBERT), https://arxiv.org/abs/1908.02265.
    """

    def __init__(self, width: int, context_width: int, inner: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(context_width, 2 * inner)
        self.out, self.norm = nn.Linear(inner, width), nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, context: Tensor, keys: Tensor | None) -> Tensor:
        """keys: (B, 1, 1, N) bool, True for the places of the context to attend to."""
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.out(attend(q, k, v, keys, False, self.dropout if self.training else 0.0))
        out: Tensor = self.norm(x + F.dropout(mixed, self.dropout, self.training))
        return out


class CoLayer(nn.Module):
    """A co-attentional transformer layer: each stream looks at the other as it was before, then has its own feed-forward.

    widths: of words and regions. inner: of queries, keys and values in both directions. cross_attention: False leaves the
    attention out, so that neither stream sees the other.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        mlp_widths: tuple[int, int],
        inner: int,
        num_heads: int,
        dropout: float,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        both = ((widths[0], widths[1]), (widths[1], widths[0]))
        self.cross = nn.ModuleList(
            CoAttention(*one, inner, num_heads, dropout) for one in both if cross_attention
        )
        self.words, self.regions = (
            FeedForward(width, dropout, mlp_width)
            for width, mlp_width in zip(widths, mlp_widths, strict=True)
        )

    def forward(
        self, words: Tensor, regions: Tensor, word_keys: Tensor | None, region_keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.cross:
            to_regions, to_words = self.cross
            words, regions = to_regions(words, regions, region_keys), to_words(regions, words, word_keys)
        return self.words(words), self.regions(regions)
