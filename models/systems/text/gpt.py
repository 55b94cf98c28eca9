"""GPT: a causal transformer that predicts the next word. Radford et al. 2018,
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.post_norm import INIT_STD, SelfAttention, init_bert
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

NORM_EPS = 1e-5


class Layer(nn.Module):
    """Causal post-norm layer; the feed-forward part has the tanh form of GELU, as GPT's code."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = SelfAttention(width, heads, dropout, NORM_EPS)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self._mlp(self.attention(x, causal=True))

    def step(self, x: Tensor, cache: Cache, at: int) -> Tensor:
        """(B, T, width): the next T positions, which see all before. Adds their keys and values to the cache."""
        q, k, v = self.attention._qkv(x)
        keys, values, mask = cache.put(at, k, v)
        return self._mlp(self.attention._close(x, attend(q, keys, values, mask)))

    def _mlp(self, x: Tensor) -> Tensor:
        inner = self.down(F.gelu(self.up(x), approximate="tanh"))
        out: Tensor = self.norm(x + F.dropout(inner, self.dropout, self.training))
        return out


class Gpt(Model):
    """Defaults are the paper's. `start` and `end`: the tokens before and after each text."""

    STREAMS = {"text": "text:Text"}  # noqa: RUF012
    FORMATS = ("openai-gpt",)
    CHAIN = ("layers",)

    def __init__(
        self,
        *,
        vocab_size: int = 40478,
        start: int = 0,
        end: int = 0,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, norm_eps=None, dropout=dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        init_bert(self, init_std)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        x = self.words(
            out.stream("text").data
        )  # padding is on the right, where causality keeps it out of sight
        for layer in self.layers:
            x = layer(x)
        return x

    def predict(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.words.words.weight)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        return TextRules(c.start, c.end, [c.start] if c.start != c.end else [], c.max_text_length)

    def start_alone(self, num: int, room: int) -> Cache:
        return Cache(room)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        x = self.words.words(ids) + cache.positions(self.words.positions.weight, ids.shape[1])
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = layer.step(x, cache, i)
        cache.advance(ids.shape[1])
        return x
