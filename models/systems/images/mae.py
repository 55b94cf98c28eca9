"""MAE: a ViT that sees a quarter of the patches, and a light decoder that reconstructs the rest.

He et al. 2022, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.patches import PatchEmbed, sincos_positions
from vlpipe.models.blocks.transformer import PreNormEncoder
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Mae(Model):
    """Defaults are ViT-B/16's with the paper's decoder. The view of its objective hides patches (`mask_patches`).

    encode_masked: give the encoder mask tokens in place of hidden patches (the paper's ablation; 3.3 times the FLOPs).
    """

    STREAMS = {"image": "image:Image"}  # noqa: RUF012
    FORMATS = ("vit_mae",)
    CHAIN = ("vision.blocks", "decoder.blocks")
    decoder_positions: Tensor

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        decoder_width: int = 512,
        decoder_layers: int = 8,
        decoder_heads: int = 16,
        encode_masked: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(image_size, patch_size, width, position="sincos")
        self.vision = PreNormEncoder(width, layers, heads, norm_eps=norm_eps)
        self.to_decoder = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width if encode_masked else decoder_width))
        positions = sincos_positions(image_size // patch_size, decoder_width)
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.decoder = PreNormEncoder(decoder_width, decoder_layers, decoder_heads, norm_eps=norm_eps)
        self.to_pixels = nn.Linear(decoder_width, 3 * patch_size**2)
        self.embed_dim = width
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.patches.class_token, std=0.02)

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, 1 + K, width): the class token and the patches of `keep`, or all patches."""
        image = out.stream("image")
        keep = image.extra.get("keep")
        if keep is None or not self.config.encode_masked:
            return self.vision(self.patches(image.data, keep))
        x = self.patches(image.data)
        hidden = self.mask_token.to(x.dtype) + self.patches.positions[:, 1:].to(x.dtype)
        visible = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter_(1, keep + 1, True)
        visible[:, 0] = True
        return self.vision(torch.where(visible[:, :, None], x, F.pad(hidden, (0, 0, 1, 0))))

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm: the class token."""
        return F.normalize(out.image_tokens[:, 0].float(), dim=-1)

    def pixel_prediction(self, out: Outputs) -> Tensor:
        """(B, N, 3 x patch x patch): all patches, hidden or not."""
        x = self.to_decoder(out.image_tokens)
        if not self.config.encode_masked:
            keep = out.stream("image").extra["keep"]
            num_patches = self.decoder_positions.shape[1] - 1
            hidden = self.mask_token.to(x.dtype).expand(len(x), num_patches, -1)
            index = keep[:, :, None].expand(-1, -1, x.shape[2])
            x = torch.cat([x[:, :1], hidden.scatter(1, index, x[:, 1:])], dim=1)
        x = self.decoder(x + self.decoder_positions.to(x.dtype))
        pixels: Tensor = self.to_pixels(x[:, 1:])
        return pixels
