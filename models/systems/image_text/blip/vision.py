"""Vision transformer as in BLIP (ViT-B/16 of DeiT): pre-norm, LayerNorm eps 1e-6, every token after the
final norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.patches import cut_patches, resize_positions, sincos_positions
from vlpipe.models.blocks.transformer import INIT_STD
from vlpipe.models.blocks.transformer import PreNormLayer as Block

__all__ = ["INIT_STD", "Block", "Vit", "cut_patches", "resize_positions", "sincos_positions"]


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
