"""One BERT-style text transformer that encodes, matches against an image, and decodes (BLIP's mixture, MED).

A layer holds two self-attentions (encoder, decoder) and one cross-attention and feed-forward for both, so
the tying of the paper ("all but SA") is the structure itself: there are no tied copies to keep equal, save
twice or forget.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks import post_norm
from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.post_norm import NORM_EPS, CrossAttention, FeedForward, init_bert


class SelfAttention(post_norm.SelfAttention):
    """Self-attention that can also decode step by step."""

    def step(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """As a causal `forward` whose earlier positions are in `cache`; adds those of `x` (B, T, D)."""
        q, k, v = self._qkv(x)
        keys, values, mask = cache.put(layer, k, v)
        return self._close(x, attend(q, keys, values, mask, False, 0.0))


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.encoder: SelfAttention | None = None
        self.decoder: SelfAttention | None = None
        self.cross: CrossAttention | None = None
        self.feed_forward = FeedForward(width, dropout)


class TextTransformer(nn.Module):
    """Hidden states (B, L, width). Which of the attentions exist is chosen by `encoder`, `decoder`,
    `cross`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        width: int,
        num_layers: int,
        num_heads: int,
        image_width: int,
        dropout: float,
        encoder: bool = True,
        decoder: bool = True,
        cross: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(Layer(width, num_heads, dropout) for _ in range(num_layers))
        for layer in self._layers():
            layer.encoder = SelfAttention(width, num_heads, dropout) if encoder else None
            layer.decoder = SelfAttention(width, num_heads, dropout) if decoder else None
            layer.cross = CrossAttention(width, image_width, num_heads, dropout) if cross else None
        init_bert(self)

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def encode(self, ids: Tensor, mask: Tensor, first: bool = False) -> Tensor:
        """Text alone, both directions. `first`: only position 0, (B, 1, D), without the work for the
        others.
        """
        return self._both_ways(ids, mask, None, None, first)

    def match(self, ids: Tensor, mask: Tensor, image_tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Both directions, grounded in the image: position 0, (B, 1, D).

        With `rows` (B,), text i looks at `image_tokens[rows[i]]`.
        """
        return self._both_ways(ids, mask, image_tokens, rows, True)

    def _both_ways(
        self, ids: Tensor, mask: Tensor, image_tokens: Tensor | None, rows: Tensor | None, first: bool
    ) -> Tensor:
        x, keys = self._embed(ids), mask[:, None, None, :].bool()
        layers = self._layers()
        for layer in layers:
            assert layer.encoder is not None
            alone = first and layer is layers[-1]
            x = layer.encoder.first(x, keys) if alone else layer.encoder(x, keys, False)
            if image_tokens is not None:
                assert layer.cross is not None
                x = layer.cross(x, layer.cross.keys_values(image_tokens, rows))
            x = layer.feed_forward(x)
        return x

    def decode(self, ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Left to right, grounded in the image. Padding stands on the right, where causality keeps it out
        of sight.
        """
        x = self._embed(ids)
        for layer in self._layers():
            assert layer.decoder is not None
            assert layer.cross is not None
            x = layer.decoder(x, None, True)
            x = layer.feed_forward(layer.cross(x, layer.cross.keys_values(image_tokens)))
        return x

    def start(self, image_tokens: Tensor, max_length: int, repeats: int = 1) -> Cache:
        """A cache for `step`: keys and values of the images, computed here, once, then repeated; or the image tokens."""
        cache, layers = Cache(max_length), self._layers()
        if all(layer.cross is not None and layer.cross.absorbs(max_length, repeats) for layer in layers):
            cache.context = image_tokens.clone()  # a cache that is kept for compiled steps is written over
            return cache
        for layer in layers:
            assert layer.cross is not None
            k, v = layer.cross.keys_values(image_tokens)
            cache.image.append((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)))
        return cache

    def step(self, ids: Tensor, cache: Cache) -> Tensor:
        """Hidden states of the next ids (B, T), as `decode` would give them after all ids before."""
        x = self._embed(ids, cache)
        for i, layer in enumerate(self._layers()):
            assert layer.decoder is not None
            assert layer.cross is not None
            x = layer.decoder.step(x, cache, i)
            if cache.context is None:
                x = layer.cross(x, cache.image[i])
            else:
                x = layer.cross.of_context(x, cache.context)
            x = layer.feed_forward(x)
        cache.advance(ids.shape[1])
        return x

    def _embed(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        end = ids.shape[1] + (0 if cache is None else cache.length)
        if end > self.positions.num_embeddings:
            raise ValueError(
                f"the text has {end} tokens, but max_text_length is {self.positions.num_embeddings}"
            )
        table = self.positions.weight
        positions = table[:end] if cache is None else cache.positions(table, ids.shape[1])
        x = self.norm(self.words(ids) + positions)
        return F.dropout(x, self.dropout, self.training)


class LmHead(nn.Module):
    """BERT's prediction head; its output matrix is the word embedding."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        init_bert(self)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)
