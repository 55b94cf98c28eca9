"""Post-norm transformer sublayers, as in BERT: each is norm(x + sublayer(x)). Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend

INIT_STD = 0.02
NORM_EPS = 1e-12  # BERT's


class SelfAttention(nn.Module):
    """norm(x + attention(x)): (B, L, width) -> (B, L, width)."""

    def __init__(self, width: int, num_heads: int, dropout: float, norm_eps: float = NORM_EPS) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """mask: (B, 1, 1, L) bool, True for the keys to attend to."""
        q, k, v = self._qkv(x)
        return self._close(x, attend(q, k, v, mask, causal, self._rate()))

    def first(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the output at position 0 alone, (B, 1, D); the other positions are only keys and values."""
        width = x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:width], bias[:width]).unflatten(2, (self.num_heads, -1))
        kv = F.linear(x, weight[width:], bias[width:]).unflatten(2, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self._close(x[:, :1], attend(q.transpose(1, 2), k, v, mask, False, self._rate()))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _close(self, x: Tensor, mixed: Tensor) -> Tensor:
        out: Tensor = self.norm(x + F.dropout(self.out(mixed), self.dropout, self.training))
        return out


class CrossAttention(nn.Module):
    """Cross-attention of x (B, L, width) to a context (B, N, context_width)."""

    def __init__(self, width: int, context_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def keys_values(self, context: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, H, N, D / H) each. `rows` repeats contexts after the projection, which is then paid once per context."""
        kv = self.kv(context)
        if rows is not None:
            kv = kv[rows]
        batch, length, _ = kv.shape
        k, v = kv.view(batch, length, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, 1, N) bool, True for the keys to attend to."""
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.num_heads, -1).transpose(1, 2)
        return self._close(x, attend(q, *keys_values, mask, False, self.dropout if self.training else 0.0))

    def of_context(self, x: Tensor, context: Tensor) -> Tensor:
        """As `forward` with the keys and values of `context` (B, N, context_width), which are never computed.

        The matrix of the keys is applied to the queries, and that of the values to the mixed context ("absorbed" in
        DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.2). Each query then has the width of the context in every
        head; a short text costs less than the keys and values of a context would, and its cache holds one context for all
        layers.
        x: (B x repeats, L, width), the rows of one context side by side. In inference only: there is no dropout here.
        """
        num, width = len(context), x.shape[2]
        # (H, D / H, context_width) each
        keys, values = self.kv.weight.view(2, self.num_heads, -1, context.shape[2]).unbind(0)
        q = (self.q(x) * (width // self.num_heads) ** -0.5).view(-1, self.num_heads, keys.shape[1])
        q = (q.transpose(0, 1) @ keys).transpose(0, 1)  # (B x repeats x L, H, Dc)
        probs = (q.reshape(num, -1, context.shape[2]) @ context.transpose(1, 2)).softmax(-1)
        mixed = (probs @ context).view(-1, self.num_heads, context.shape[2]).transpose(0, 1)
        mixed = (mixed @ values.transpose(1, 2)).transpose(0, 1).reshape(x.shape)
        return self._close(x, mixed + self.kv.bias[width:])

    def absorbs(self, num_tokens: int, repeats: int = 1) -> bool:
        """Returns whether `of_context` is faster than keys and values for texts of `num_tokens`, `repeats` per context.

        On the CPU it is up to about 0.65 x the width of a head, and 0.4 with several texts (64 x 197 tokens, 384 to 768
        wide, one thread). On a GPU keys and values are used.
        """
        most = self.q.in_features // self.num_heads // (2 if repeats == 1 else 3)
        return self.q.weight.device.type == "cpu" and num_tokens <= most

    def _close(self, x: Tensor, mixed: Tensor) -> Tensor:
        out: Tensor = self.norm(x + F.dropout(self.out(mixed), self.dropout, self.training))
        return out


class FeedForward(nn.Module):
    """norm(x + mlp(x)): (B, L, width) -> (B, L, width). mlp_width: None for 4 x width."""

    def __init__(
        self, width: int, dropout: float, mlp_width: int | None = None, norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, mlp_width or 4 * width)
        self.down = nn.Linear(mlp_width or 4 * width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + F.dropout(self.down(F.gelu(self.up(x))), self.dropout, self.training))
        return out


class PostNormLayer(nn.Module):
    """Self-attention, then feed-forward: (B, L, width) -> (B, L, width). mask: see `SelfAttention`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        dropout: float,
        mlp_width: int | None = None,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, dropout, norm_eps)
        self.feed_forward = FeedForward(width, dropout, mlp_width, norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.feed_forward(self.attention(x, mask))
        return out


Joined = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class JoiningLayer(PostNormLayer):
    """A `PostNormLayer` whose keys and values a caller can keep, or join with earlier ones: x attends to those that
    `join(k, v)` returns, (B, heads, N, d) each, with their mask (B or 1, 1, L, N).
    """

    def forward(self, x: Tensor, mask: Tensor | None = None, join: Joined | None = None) -> Tensor:
        if join is None:
            return super().forward(x, mask)
        q, k, v = self.attention._qkv(x)
        k, v, seen = join(k, v)
        mixed = attend(q, k, v, seen, False, self.attention._rate())
        out: Tensor = self.feed_forward(self.attention._close(x, mixed))
        return out


class Transform(nn.Module):
    """Dense, GELU, norm: what BERT's heads do to hidden states (..., width) before their output matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return out


def init_bert(module: nn.Module, std: float = INIT_STD) -> None:
    """Initialises linear layers and embeddings as BERT: normal with deviation `std`, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
