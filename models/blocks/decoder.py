"""Pre-norm decoder layers: causal self-attention, cross-attention in some, feed-forward (CoCa)."""

from __future__ import annotations

from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.attention_pool import CrossAttend
from vlpipe.models.blocks.cache import Cache, KeysValues
from vlpipe.models.blocks.transformer import ACTIVATIONS


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), with `cross` x + cross-attention(norm(x), context), x + mlp(norm(x)): (B, L, D) -> (B, L, D).

    mlp_width: None for 4 x width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        cross: bool,
        mlp_width: int | None = None,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.num_heads, self.activation = num_heads, ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, eps=norm_eps) if cross else None
        self.cross = CrossAttend(width, num_heads) if cross else None
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_width or 4 * width)
        self.down = nn.Linear(mlp_width or 4 * width, width)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """mask: bool, True = attend; broadcasts to (B, heads, L, L). context: (B, N, D), of a layer with cross-attention."""
        x = x + self.out(attend(*self._qkv(x), mask))
        return self._rest(
            x, None if self.cross is None or context is None else self.cross.keys_values(context)
        )

    def step(self, x: Tensor, cache: Cache, at: int, image: KeysValues | None = None) -> Tensor:
        """(B, T, D): the next T positions, which see all before. Adds their keys and values to the cache.

        image: keys and values of the context, of a layer with cross-attention.
        """
        q, k, v = self._qkv(x)
        return self._rest(x + self.out(attend(q, *cache.put(at, k, v))), image)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _rest(self, x: Tensor, image: KeysValues | None) -> Tensor:
        if self.cross is not None:
            assert self.cross_norm is not None
            assert image is not None
            x = x + self.cross(self.cross_norm(x), image)
        out: Tensor = x + self.down(self.activation(self.up(self.norm2(x))))
        return out
