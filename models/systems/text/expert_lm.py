"""Experts: a causal language model in which every second feed-forward part is a mixture of experts. Shazeer et al. 2017,
https://arxiv.org/abs/1701.06538; GShard, https://arxiv.org/abs/2006.16668; Switch, https://arxiv.org/abs/2101.03961.

The papers' models are an LSTM and encoder-decoders for translation and T5; this one is a pre-norm decoder, to which the
same layer is added in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.blocks.transformer import INIT_STD, init_vit
from vlpipe.models.experts.layer import Experts
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); feed_forward: experts, or one network with `experts` None."""

    def __init__(self, width: int, heads: int, experts: Experts | None) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.experts = experts
        self.up = nn.Linear(width, 4 * width) if experts is None else None
        self.down = nn.Linear(4 * width, width) if experts is None else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (B, L) bool, False for padding."""
        q, k, v = self._qkv(x)
        return self._feed_forward(x + self.out(attend(q, k, v, causal=True)), mask)

    def step(self, x: Tensor, cache: Cache, at: int) -> Tensor:
        """(B, T, width): the next T positions, which see all before. Adds their keys and values to the cache."""
        q, k, v = self._qkv(x)
        keys, values, mask = cache.put(at, k, v)
        return self._feed_forward(x + self.out(attend(q, keys, values, mask)), None)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _feed_forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        inner = self.norm2(x)
        if self.experts is not None:
            found: Tensor = x + self.experts(inner, mask)
            return found
        assert self.up is not None
        assert self.down is not None
        return x + self.down(F.gelu(self.up(inner)))


class ExpertLm(Model):
    """experts: per layer; 1 is a network of the usual kind, with the same work per token. router: see `experts.layer`.

    capacity_factor: (training, evaluation). While it writes, the new words of all texts share the experts' places.
    """

    # 2: the whole gradient of noisy top-k
    VERSION = 2

    STREAMS = {"text": "text:Text"}  # noqa: RUF012
    CHAIN = ("layers",)

    def __init__(
        self,
        *,
        vocab_size: int,
        start: int = 0,
        end: int = 0,
        experts: int = 8,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        max_text_length: int = 512,
        router: Mapping[str, Any] | None = None,
        capacity_factor: tuple[float, float] = (1.25, 2.0),
        expert_dropout: float = 0.0,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, norm_eps=None)
        spec = {"router": router, "capacity_factor": tuple(capacity_factor), "dropout": expert_dropout}
        self.layers = nn.ModuleList(
            Layer(width, heads, Experts(width, 4 * width, experts, **spec) if i % 2 and experts > 1 else None)  # type: ignore[arg-type]
            for i in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        init_vit(self, init_std)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        x = self.words(text.data)
        for layer in self.layers:
            x = layer(x, text.mask)
        hidden: Tensor = self.norm(x)
        return hidden

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
        hidden: Tensor = self.norm(x)
        return hidden

    def predict(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.words.words.weight)
