"""Token embeddings and heads on text, as in BERT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextEmbed(nn.Module):
    """Token ids (B, L) -> (B, L, width): words + positions (+ segment types), normalised, with dropout.

    num_types: segment types; 0 for none. norm_eps: None for no norm (CLIP, GPT).
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        width: int,
        *,
        num_types: int = 0,
        norm_eps: float | None = 1e-12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.types = nn.Embedding(num_types, width) if num_types else None
        self.norm = nn.LayerNorm(width, eps=norm_eps) if norm_eps is not None else None
        self.dropout = dropout

    def forward(self, ids: Tensor, segment: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        """segment: (B, L) types, None for 0. words: (B, L, width) used instead of the embedding of `ids`."""
        length = ids.shape[1]
        if length > self.positions.num_embeddings:
            raise ValueError(
                f"text: {length} tokens, but the model has {self.positions.num_embeddings} positions"
            )
        x = (self.words(ids) if words is None else words) + self.positions.weight[:length]
        if self.types is not None:
            x = x + (self.types.weight[0] if segment is None else self.types(segment))
        x = x if self.norm is None else self.norm(x)
        return F.dropout(x, self.dropout, self.training)


class WordHead(nn.Module):
    """Hidden states (..., width) -> logits (..., V): dense, GELU, norm, and a matrix: `tied` word embedding or its own."""

    def __init__(
        self, width: int, vocab_size: int, *, tied: nn.Embedding | None = None, norm_eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.decoder = nn.Linear(width, vocab_size)
        if tied is not None:
            self.decoder.weight = tied.weight

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.norm(F.gelu(self.dense(hidden))))
        return out


class Pooler(nn.Module):
    """Hidden states (B, L, width) -> (B, width): tanh of a linear map of position 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))
