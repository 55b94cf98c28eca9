"""BERT's encoder: post-norm transformer layers over embedded tokens. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import NORM_EPS, PostNormLayer
from vlpipe.models.blocks.text import TextEmbed


class BertEncoder(nn.Module):
    """Token ids (B, L) -> hidden states (B, L, width): `TextEmbed` and `num_layers` post-norm layers."""

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        mlp_width: int | None = None,
        num_types: int = 2,
        norm_eps: float = NORM_EPS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = TextEmbed(
            vocab_size, max_length, width, num_types=num_types, norm_eps=norm_eps, dropout=dropout
        )
        self.blocks = nn.ModuleList(
            PostNormLayer(width, num_heads, dropout, mlp_width, norm_eps) for _ in range(num_layers)
        )

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        segment: Tensor | None = None,
        words: Tensor | None = None,
    ) -> Tensor:
        """mask: (B, L) bool, False for padding. segment, words: see `TextEmbed`."""
        x = self.embed(ids, segment, words)
        keys = None if mask is None else mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        return x
