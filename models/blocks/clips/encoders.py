"""Transformers over the windows of clips, and over texts and windows together (UniVL, CBT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import NORM_EPS, PostNormLayer
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs


class WindowEncoder(nn.Module):
    """Features of windows (M, T, feat_dim) -> states (M, T, width): linear map, positions, norm, dropout, layers."""

    def __init__(
        self, feat_dim: int, max_windows: int, width: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(feat_dim, width)
        self.positions = nn.Embedding(max_windows, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(PostNormLayer(width, num_heads, dropout) for _ in range(num_layers))
        self.dropout = dropout

    def forward(self, feats: Tensor, mask: Tensor) -> Tensor:
        """mask: (M, T) bool, False for padding. Raises ValueError for more than `max_windows` windows."""
        if feats.shape[1] > self.positions.num_embeddings:
            raise ValueError(
                f"video: {feats.shape[1]} windows, but the model has {self.positions.num_embeddings} positions"
            )
        x = self.norm(self.proj(feats) + self.positions.weight[: feats.shape[1]])
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return x


class JoinedEncoder(nn.Module):
    """States of words (M, L, width) and windows (M, T, width) -> the same, read together.

    One sequence, words first: types, positions, norm, dropout, post-norm layers. Windows have the positions from
    `windows_at` on, however long the texts of a batch are.
    """

    def __init__(
        self,
        max_positions: int,
        windows_at: int,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.windows_at = windows_at
        self.positions, self.types = nn.Embedding(max_positions, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(PostNormLayer(width, num_heads, dropout) for _ in range(num_layers))
        self.dropout = dropout

    def forward(
        self, words: Tensor, windows: Tensor, word_mask: Tensor, window_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """word_mask: (M, L) bool, window_mask: (M, T) bool, False for padding. ValueError for more than the positions."""
        length, first, last = words.shape[1], self.windows_at, self.windows_at + windows.shape[1]
        if length > first or last > self.positions.num_embeddings:
            raise ValueError(
                f"cross encoder: {length} words and {windows.shape[1]} windows, but windows have positions {first} to "
                f"{self.positions.num_embeddings - 1}"
            )
        places = self.positions.weight
        x = torch.cat(
            [
                words + self.types.weight[0] + places[:length],
                windows + self.types.weight[1] + places[first:last],
            ],
            dim=1,
        )
        x = self.norm(x)
        x = F.dropout(x, self.dropout, self.training)
        keys = torch.cat([word_mask, window_mask], dim=1)[:, None, None]
        for block in self.blocks:
            x = block(x, keys)
        return x[:, :length], x[:, length:]


def word_mask(text: Stream) -> Tensor:
    """Returns which tokens are real, (M, L) bool, of the M = B or B x N texts of ids (B, L) or (B, N, L)."""
    return (torch.ones_like(text.data, dtype=torch.bool) if text.mask is None else text.mask).flatten(0, -2)


def window_mask(video: Stream) -> Tensor:
    """Returns which windows are real, (M, T) bool, of the M = B x N clips of features (B, N, T, D)."""
    data = video.data
    whole = data.new_ones(data.shape[:-1], dtype=torch.bool)
    return (whole if video.mask is None else video.mask).flatten(0, 1)


def read_together(out: Outputs, cross: JoinedEncoder) -> dict[str, Tensor]:
    """Returns the states of words (M, L, width) and windows (M, T, width) of M pairs after the cross encoder: of the model's
    `text_tokens` and `video_tokens`, row by row, or as the view pairs them."""
    tokens = {}
    for name in ("text", "video"):
        value, rows = out.unpaired(f"{name}_tokens", name)
        tokens[name] = value if rows is None else value[rows]
    masks = word_mask(out.stream("text")), window_mask(out.stream("video"))
    words, windows = cross(tokens["text"], tokens["video"], *masks)
    return {"text": words, "video": windows}
