"""Vision transformer as in BLIP (ViT-B/16 of DeiT): pre-norm, LayerNorm eps 1e-6, every token after the
final norm.

Patches are cut by a view and projected by one matrix product, which equals the usual strided convolution.
Reference: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.attention import attend

INIT_STD = 0.02  # ViT's; transformers' BlipVisionConfig says 1e-10, with which all images start out equal


class Vit(nn.Module):
    """Pixels (B, 3, S, S) -> tokens (B, 1 + (S / patch)^2, width); token 0 is the class token.

    position "learned" (BLIP) or "sincos": a fixed 2-D table of unit scale, for training small models from
    scratch, where learned positions at std 0.02 drown beside the patch embedding. `drop_path` grows
    linearly with depth up to its value.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        drop_path: float = 0.0,
        position: str = "learned",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        grid = image_size // patch_size
        self.patch = nn.Linear(3 * patch_size * patch_size, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        if position == "learned":
            self.positions = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        else:
            self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        rates = [drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        self.blocks = nn.ModuleList(Block(width, num_heads, rate, norm_eps) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self._init()

    def _init(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        if isinstance(self.positions, nn.Parameter):
            nn.init.trunc_normal_(self.positions, std=INIT_STD)

    def forward(self, pixels: Tensor, first: bool = False) -> Tensor:
        """`first`: only the class token, (B, 1, width), without the last layer's work for the others."""
        x = self.patch(cut_patches(pixels, self.patch_size))  # (B, N, D)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions.to(x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, first and i == len(self.blocks) - 1)
        out: Tensor = self.norm(x)
        return out


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, drop_path: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads, self.drop_path = num_heads, drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, first: bool) -> Tensor:
        mixed = self._attend(self.norm1(x), first)
        x = (x[:, :1] if first else x) + self._drop(mixed)
        return x + self._drop(self.down(F.gelu(self.up(self.norm2(x)))))

    def _attend(self, x: Tensor, first: bool) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D / H) each
        out: Tensor = self.out(attend(q[:, :, :1] if first else q, k, v))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)


def cut_patches(pixels: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) -> (B, (S / size)^2, 3 x size x size), patches row by row, values in the order of a conv
    weight.
    """
    batch, channels, height, width = pixels.shape
    x = pixels.reshape(batch, channels, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D table (1, 1 + grid^2, width) as in MAE (He et al. 2022): half for x, half for y; zeros for
    the class token.
    """
    if width % 4:
        raise ValueError(f"vision_width must be a multiple of 4 for position: sincos, got {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # (grid, width / 4)
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    across = one_axis[None, :, :].expand(grid, grid, -1)
    down = one_axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([across, down], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width), table.float()])[None]


def resize_positions(positions: Tensor, num_tokens: int) -> Tensor:
    """Bicubic interpolation of (1, 1 + G^2, D) to another square grid; the class token's row is kept (BLIP,
    DeiT).
    """
    if positions.shape[1] == num_tokens:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round((num_tokens - 1) ** 0.5)
    table = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    table = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(positions.dtype)
    return torch.cat([positions[:, :1], table], dim=1)
