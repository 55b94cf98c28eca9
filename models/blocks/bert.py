"""BERT's encoder: post-norm transformer layers over embedded tokens. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.text import TextEmbed

NORM_EPS = 1e-12


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): (B, L, D) -> (B, L, D). dropout: of attention and of both branches."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool, True = attend; broadcasts to (B, heads, L, L)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.out(attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0))
        x = self.norm1(x + F.dropout(mixed, self.dropout, self.training))
        fed = self.down(F.gelu(self.up(x)))
        out: Tensor = self.norm2(x + F.dropout(fed, self.dropout, self.training))
        return out


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
            BertLayer(width, num_heads, mlp_width or 4 * width, dropout, norm_eps) for _ in range(num_layers)
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


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """Initialises linear layers and embeddings with a normal distribution and zero biases, as BERT."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
