"""From pixels to patch embeddings with positions.

Patches are cut by a view and projected by one matrix product, which equals the usual strided convolution.
Reference: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.transformer import INIT_STD


class PatchEmbed(nn.Module):
    """Pixels (B, 3, S, S) -> (B, 1 + (S / patch)^2, width): a class token, then the patches row by row.

    position: "learned", or "sincos", a fixed 2-D table of unit scale (MAE). bias: of the projection (CLIP has none).
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, *, position: str = "learned", bias: bool = True
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size {patch_size}, got {image_size}")
        self.patch_size = patch_size
        grid = image_size // patch_size
        self.patch = nn.Linear(3 * patch_size * patch_size, width, bias=bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        if position == "learned":
            self.positions = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
            nn.init.trunc_normal_(self.positions, std=INIT_STD)
        else:
            self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (B, K) indices of the patches to embed; None for all."""
        patches = cut_patches(pixels, self.patch_size)  # (B, N, 3 x patch x patch)
        positions = self.positions[:, 1:].to(patches.dtype).expand(len(patches), -1, -1)
        if keep is not None:
            patches, positions = take(patches, keep), take(positions, keep)
        x = self.patch(patches)
        x = x + positions.to(x.dtype)
        first = (self.class_token + self.positions[:, :1]).to(x.dtype)
        return torch.cat([first.expand(len(x), -1, -1), x], dim=1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Returns rows `index` (B, K) of each sample of `x` (B, N, D): (B, K, D)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


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
        raise ValueError(f"the width must be a multiple of 4 for position: sincos, got {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * omega  # (grid, width / 4)
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    across = one_axis[None, :, :].expand(grid, grid, -1)
    down = one_axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([across, down], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width, device="cpu"), table.float()])[None].to(
        torch.get_default_device()
    )


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
