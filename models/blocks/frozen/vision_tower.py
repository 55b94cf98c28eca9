"""The image encoder that a larger model reads, mostly frozen: a ViT, with CLIP's variations. https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

from torch import Tensor, nn

from vlpipe.models.blocks.patches import PatchEmbed, resize_positions
from vlpipe.models.blocks.transformer import PreNormEncoder, init_vit


class VisionTower(nn.Module):
    """Pixels (B, 3, S, S) -> tokens (B, 1 + (S / patch_size)^2, width), the class token first.

    clip: as CLIP's, with a norm before the layers and no bias of patches. mlp_width: None for 4 x width. Its parts
    `patches`, `pre_norm` and `encoder` have the layout of those of other systems, so that `init_parts` can fill them.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        clip: bool = False,
        mlp_width: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(image_size, patch_size, width, bias=not clip)
        self.pre_norm = nn.LayerNorm(width, eps=norm_eps) if clip else None
        self.encoder = PreNormEncoder(
            width, num_layers, num_heads, norm_eps=norm_eps, activation=activation, mlp_width=mlp_width
        )
        init_vit(self)

    def forward(self, pixels: Tensor, skip: int = 0) -> Tensor:
        """skip: how many of the last layers are left out, and with them the last norm; 0: none."""
        x = self.patches(pixels)
        x = x if self.pre_norm is None else self.pre_norm(x)
        if not skip:
            out: Tensor = self.encoder(x)
            return out
        for block in self.encoder.blocks[:-skip]:
            x = block(x)
        return x

    def fitted(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Returns a state dict whose tower is at `prefix`, with its positions interpolated to this tower's image size."""
        name = f"{prefix}patches.positions"
        if name not in state:
            return state
        return {**state, name: resize_positions(state[name], self.patches.positions.shape[1])}
