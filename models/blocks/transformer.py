"""Pre-norm transformer layers, as in ViT, CLIP, MAE and ViLT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend

INIT_STD = 0.02  # ViT's; transformers' BlipVisionConfig says 1e-10, with which all images start out equal


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, L, D) -> (B, L, D).

    drop_path: probability that a sample skips a branch in training. mlp_width: None for 4 x width. dropout: after each
    linear layer but that of queries, keys and values (ViT).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        mlp_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.drop_path, self.activation = num_heads, drop_path, ACTIVATIONS[activation]
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_width or 4 * width)
        self.down = nn.Linear(mlp_width or 4 * width, width)

    def forward(self, x: Tensor, first: bool = False, mask: Tensor | None = None) -> Tensor:
        """mask: bool, True = attend; broadcasts to (B, heads, L, L). first: returns position 0 alone, (B, 1, D)."""
        mixed = self._dropout(self._attend(self.norm1(x), first, mask))
        x = (x[:, :1] if first else x) + self._drop(mixed)
        inner = self._dropout(self.activation(self.up(self.norm2(x))))
        return x + self._drop(self._dropout(self.down(inner)))

    def _attend(self, x: Tensor, first: bool, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D / H) each
        out: Tensor = self.out(attend(q[:, :, :1] if first else q, k, v, mask))
        return out

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)


class PreNormEncoder(nn.Module):
    """`num_layers` pre-norm layers and a final norm. `drop_path` grows linearly with depth up to its value."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        mlp_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rates = [drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        self.blocks = nn.ModuleList(
            PreNormLayer(width, num_heads, rate, norm_eps, activation, mlp_width, dropout) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None, first: bool = False) -> Tensor:
        """(B, L, D) -> (B, L, D). mask: see `PreNormLayer`. first: position 0 alone, (B, 1, D), for less work."""
        for i, block in enumerate(self.blocks):
            x = block(x, first and i == len(self.blocks) - 1, mask)
        out: Tensor = self.norm(x)
        return out


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Returns (L, L) bool: position i attends to positions up to i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def init_vit(module: nn.Module, std: float = INIT_STD) -> None:
    """Initialises linear layers and embeddings with a truncated normal and zero biases (ViT, MAE, ViLT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def init_clip(*encoders: PreNormEncoder) -> None:
    """Initialises the layers as CLIP's code does: their width and depth set the scale of each matrix."""
    for encoder in encoders:
        width, depth = encoder.norm.normalized_shape[0], len(encoder.blocks)
        inner, residual = width**-0.5, width**-0.5 * (2 * depth) ** -0.5
        std = {"qkv": inner, "out": residual, "up": (2 * width) ** -0.5, "down": residual}
        for name, p in encoder.blocks.named_parameters():
            layer, kind = name.split(".")[-2:]
            if layer in std:
                nn.init.normal_(p, std=std[layer]) if kind == "weight" else nn.init.zeros_(p)
