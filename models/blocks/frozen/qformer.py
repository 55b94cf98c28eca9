"""BLIP-2's Querying Transformer: learned queries that read an image, and a text side that shares their self-attention.

Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import Cache, KeysValues
from vlpipe.models.blocks.post_norm import (
    INIT_STD,
    NORM_EPS,
    CrossAttention,
    FeedForward,
    SelfAttention,
    init_bert,
)
from vlpipe.models.blocks.text import TextEmbed


class Layer(nn.Module):
    """Self-attention, cross-attention to the image in some layers, feed-forward of the queries; post-norm as in BERT."""

    GATHERED_ALONE = False  # both sides use the steps inside of its attention (see `parallel.layers`)

    def __init__(
        self,
        width: int,
        heads: int,
        image_width: int | None,
        mlp_width: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.cross = None if image_width is None else CrossAttention(width, image_width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout, mlp_width)

    def query_part(self, x: Tensor, image: Tensor, rows: Tensor | None = None) -> Tensor:
        """What follows self-attention, of queries (B, Q, width)."""
        if self.cross is not None:
            x = self.cross(x, self.cross.keys_values(image, rows))
        out: Tensor = self.feed_forward(x)
        return out


class QFormer(nn.Module):
    """`num` queries, BERT layers, every `cross_every`-th of them, the first included, with cross-attention to the image."""

    def __init__(
        self,
        num: int,
        width: int,
        num_layers: int,
        num_heads: int,
        image_width: int,
        *,
        cross_every: int = 2,
        mlp_width: int | None = None,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.queries = nn.Parameter(torch.empty(1, num, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            Layer(width, num_heads, None if i % cross_every else image_width, mlp_width, dropout)
            for i in range(num_layers)
        )
        init_bert(self, init_std)
        nn.init.normal_(self.queries, std=init_std)

    def embedded(self, x: Tensor) -> Tensor:
        """Normalises queries or words (B, L, width) before the first layer."""
        return F.dropout(self.norm(x), self.dropout, self.training)

    def forward(self, image: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Image (B, N, image_width) -> the queries' outputs (B, Q, width), and their keys and values in each layer."""
        x = self.embedded(self.queries.expand(len(image), -1, -1))
        kept = []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            q, k, v = layer.attention._qkv(x)
            kept.append((k, v))
            x = layer.attention._close(x, attend(q, k, v, dropout=layer.attention._rate()))
            x = layer.query_part(x, image)
        return x, kept


class QFormerText(nn.Module):
    """The text side: word embeddings, and a feed-forward part for each layer of a `QFormer`, whose self-attention it uses.

    The Q-Former is an argument of each method, so that it can be trained on without this side (BLIP-2's second stage).
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        width: int,
        num_layers: int,
        *,
        mlp_width: int | None = None,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_length, width, norm_eps=None)
        self.feed_forward = nn.ModuleList(FeedForward(width, dropout, mlp_width) for _ in range(num_layers))
        init_bert(self, init_std)

    def alone(self, qformer: QFormer, ids: Tensor, mask: Tensor) -> Tensor:
        """Words that see each other, (B, L, width). mask: (B, L) bool."""
        x, keys = qformer.embedded(self.words(ids)), mask[:, None, None, :]
        for layer, feed_forward in zip(qformer.layers, self.feed_forward, strict=True):
            assert isinstance(layer, Layer)
            x = feed_forward(layer.attention(x, keys))
        return x

    def matched(
        self, qformer: QFormer, ids: Tensor, mask: Tensor, image: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Outputs (B, Q, width) of queries that see the words, and are seen by them.

        rows: (B,), which of `image` (B', N, image_width) each text is paired with; None: its own.
        """
        num = qformer.queries.shape[1]
        words = self.words(ids)
        x = qformer.embedded(torch.cat([qformer.queries.expand(len(ids), -1, -1).to(words.dtype), words], 1))
        keys = F.pad(mask, (num, 0), value=True)[:, None, None, :]
        for layer, feed_forward in zip(qformer.layers, self.feed_forward, strict=True):
            assert isinstance(layer, Layer)
            x = layer.attention(x, keys)
            queries = layer.query_part(x[:, :num], image, rows)
            x = torch.cat([queries, feed_forward(x[:, num:])], 1)
        return x[:, :num]

    def written(self, qformer: QFormer, ids: Tensor, kept: list[KeysValues]) -> Tensor:
        """Words that see all queries and the words up to themselves, (B, L, width); the queries do not see them.

        kept: of `QFormer`. Padding is on the right, where no word sees it.
        """
        x, num, length = qformer.embedded(self.words(ids)), kept[0][0].shape[2], ids.shape[1]
        sees = torch.ones(length, num + length, dtype=torch.bool, device=ids.device).tril(num)
        for layer, feed_forward, (keys, values) in zip(qformer.layers, self.feed_forward, kept, strict=True):
            assert isinstance(layer, Layer)
            q, k, v = layer.attention._qkv(x)
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            mixed = attend(q, k, v, sees, dropout=layer.attention._rate())
            x = feed_forward(layer.attention._close(x, mixed))
        return x

    def start(self, kept: list[KeysValues], room: int, repeats: int) -> Cache:
        """A cache for `step`, of texts of at most `room` words after the queries, each `repeats` times."""
        cache = Cache(room)
        cache.image = [(k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in kept]
        return cache

    def step(self, qformer: QFormer, ids: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, T, width) of the next ids (B, T), as `written` would give them after all ids before."""
        x = self.words.words(ids) + cache.positions(self.words.positions.weight, ids.shape[1])
        x = qformer.embedded(x)
        for i, (layer, feed_forward) in enumerate(zip(qformer.layers, self.feed_forward, strict=True)):
            assert isinstance(layer, Layer)
            q, k, v = layer.attention._qkv(x)
            own, mine, sees = cache.put(i, k, v)
            keys, values = cache.image[i]
            sees = F.pad(sees, (keys.shape[2], 0), value=True)
            mixed = attend(q, torch.cat([keys, own], 2), torch.cat([values, mine], 2), sees)
            x = feed_forward(layer.attention._close(x, mixed))
        cache.advance(ids.shape[1])
        return x
