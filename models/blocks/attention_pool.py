"""Image encoders without a class token, whose tokens are pooled by attention (SigLIP, CoCa).

Lee et al. 2019, https://arxiv.org/abs/1810.00825 (pooling by attention); Zhai et al. 2022, https://arxiv.org/abs/2106.04560
(as the head of a ViT).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.mobilenet_v2 import CLIP_MEAN, CLIP_STD
from vlpipe.models.blocks.patches import cut_patches, resize_positions, sincos_positions
from vlpipe.models.blocks.transformer import ACTIVATIONS, INIT_STD, PreNormEncoder


class PatchVit(nn.Module):
    """Pixels (B, 3, S, S) -> tokens (B, (S // patch)^2, width) after the final norm; no class token.

    Pixels beyond the last whole patch, right and below, are not seen (SigLIP so400m: 384 pixels in patches of 14).
    position: "learned", or "sincos", a fixed 2-D table of unit scale. encoder: of `PreNormEncoder`.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        *,
        position: str = "learned",
        **encoder: Any,
    ) -> None:
        super().__init__()
        if image_size < patch_size:
            raise ValueError(f"image_size must be at least patch_size {patch_size}, got {image_size}")
        self.patch_size, grid = patch_size, image_size // patch_size
        self.seen = grid * patch_size
        self.patch = nn.Linear(3 * patch_size * patch_size, width)
        if position == "learned":
            self.positions = nn.Parameter(torch.empty(1, grid * grid, width))
            nn.init.trunc_normal_(self.positions, std=INIT_STD)
        else:
            self.register_buffer("positions", sincos_positions(grid, width)[:, 1:], persistent=False)
        self.encoder = PreNormEncoder(width, layers, heads, **encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(cut_patches(pixels[:, :, : self.seen, : self.seen], self.patch_size))
        out: Tensor = self.encoder(x + self.positions.to(x.dtype))
        return out

    def fitted(self, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """Returns saved weights with the learned positions `name` interpolated to this grid, if they are of another."""
        if name not in state or state[name].shape == self.positions.shape:
            return state
        with_class_token = F.pad(state[name], (0, 0, 1, 0))
        return {**state, name: resize_positions(with_class_token, 1 + self.positions.shape[1])[:, 1:]}


class CrossAttend(nn.Module):
    """Multi-head attention of x (B, L, width) to a context (B, N, width), without norm or residual."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, N, width / H) each."""
        kv = F.linear(context, self.qkv.weight[self.width :], self.qkv.bias[self.width :])
        k, v = kv.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        q = F.linear(x, self.qkv.weight[: self.width], self.qkv.bias[: self.width])
        q = q.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        out: Tensor = self.out(attend(q, *keys_values))
        return out


class AttentionPool(nn.Module):
    """Tokens (B, N, width) -> (B, num_queries, width): attention of learned queries to them."""

    def __init__(self, width: int, num_heads: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, num_queries, width))
        nn.init.trunc_normal_(self.queries, std=INIT_STD)
        self.attention = CrossAttend(width, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        out: Tensor = self.attention(queries, self.attention.keys_values(tokens))
        return out


class PoolingHead(nn.Module):
    """Tokens (B, N, width) -> (B, width): x, the attention of one learned query, then x + mlp(norm(x)).

    mlp_width: None for 4 x width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_width: int | None = None,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.pool = AttentionPool(width, num_heads, 1)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_width or 4 * width)
        self.down = nn.Linear(mlp_width or 4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.pool(tokens)[:, 0]
        out: Tensor = x + self.down(self.activation(self.up(self.norm(x))))
        return out


class Rescaled(nn.Module):
    """CLIP-normalised pixels (B, 3, H, W) -> the same pixels with values from -1 to 1."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", 2 * torch.tensor(CLIP_STD)[:, None, None], persistent=False)
        self.register_buffer("shift", 2 * torch.tensor(CLIP_MEAN)[:, None, None] - 1, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift


def init_xavier(module: nn.Module) -> None:
    """Initialises as big_vision's towers: linear layers uniform by Glorot's rule (query, key and value apart), zero biases;
    word embeddings, positions and queries normal with deviation 1 / sqrt(width).

    https://github.com/google-research/big_vision, `models/vit.py` and `models/proj/image_text/text_transformer.py`.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            for matrix in part.weight.data.chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(matrix)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)
        for own in ("positions", "queries"):
            value = getattr(part, own, None)
            if isinstance(value, nn.Parameter):
                nn.init.normal_(value, std=value.shape[-1] ** -0.5)
