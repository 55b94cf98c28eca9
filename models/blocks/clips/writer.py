"""A decoder that writes texts about a context, layer by layer as UniVL's."""

from __future__ import annotations

from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import SourceCache
from vlpipe.models.blocks.post_norm import CrossAttention, FeedForward, SelfAttention
from vlpipe.models.blocks.text import TextEmbed


class WriterLayer(nn.Module):
    """Causal self-attention, cross-attention to a context, feed-forward, each with a norm behind it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.cross = CrossAttention(width, width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """seen: (B, 1, 1, N) bool, False for padding of the context (B, N, width)."""
        x = self.attention(x, causal=True)
        x = self.cross(x, self.cross.keys_values(context), seen)
        out: Tensor = self.feed_forward(x)
        return out

    def step(self, x: Tensor, cache: SourceCache, at: int) -> Tensor:
        """(B, T, width): the next T positions, which see all before. Adds their keys and values to the cache."""
        q, k, v = self.attention._qkv(x)
        x = self.attention._close(x, attend(q, *cache.put(at, k, v)))
        assert cache.seen is not None
        out: Tensor = self.feed_forward(self.cross(x, cache.image[at], cache.seen[:, None, None]))
        return out


class Writer(nn.Module):
    """Token ids (B, L), a context (B, N, width) -> hidden states (B, L, width). Words and positions are those of `embed`."""

    def __init__(self, embed: TextEmbed, num_layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        vocab_size, width = embed.words.weight.shape
        self.embed = TextEmbed(vocab_size, embed.positions.num_embeddings, width, dropout=dropout)
        self.embed.words, self.embed.positions = embed.words, embed.positions
        self.blocks = nn.ModuleList(WriterLayer(width, heads, dropout) for _ in range(num_layers))

    def forward(self, ids: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """seen: (B, N) bool, False for padding of the context."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, context, seen[:, None, None])
        return x

    def start(self, context: Tensor, seen: Tensor, room: int, repeats: int) -> SourceCache:
        """Returns a cache of texts of at most `room` tokens about each context, `repeats` times."""
        cache = SourceCache(room, seen=seen.repeat_interleave(repeats, 0))
        for block in self.blocks:
            assert isinstance(block, WriterLayer)
            k, v = block.cross.keys_values(context)
            cache.image.append((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)))
        return cache

    def step(self, ids: Tensor, cache: SourceCache) -> Tensor:
        """Returns hidden states (B, T, width) of the next ids (B, T), which it adds to the cache."""
        embed = self.embed
        x = embed.words(ids) + cache.positions(embed.positions.weight, ids.shape[1])
        x = x if embed.norm is None else embed.norm(x)
        for at, block in enumerate(self.blocks):
            assert isinstance(block, WriterLayer)
            x = block.step(x, cache, at)
        cache.advance(ids.shape[1])
        return x
