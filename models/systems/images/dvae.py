"""DALL-E's discrete VAE: an image as a grid of codes, and back. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.codebooks.dalle import DalleEncoder
from vlpipe.models.codebooks.dalle_decoder import DalleDecoder, init_convolutions, unmapped
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Dvae(Model):
    """Defaults are those of the paper and of the released weights; its objective is `images.elb:Elb`.

    A place is 8 x 8 pixels. width: of the groups of full resolution; depth: blocks in each of four groups; code_width: of
    the vector of a code in the decoder. `encoder` is a codebook: `init_parts: [{weights: ..., part: encoder, into:
    codebook}]` gives it to a BEiT.
    """

    STREAMS = {"image": "image:Image"}  # noqa: RUF012

    def __init__(
        self,
        *,
        num_codes: int = 8192,
        image_size: int = 256,
        width: int = 256,
        depth: int = 2,
        code_width: int = 128,
    ) -> None:
        super().__init__()
        sizes = {"num_codes": num_codes, "width": width, "depth": depth}
        self.encoder = DalleEncoder(**sizes)
        if image_size % self.encoder.patch_size:
            raise ValueError(
                f"model: image_size must be a multiple of {self.encoder.patch_size}, got {image_size}"
            )
        self.encoder.requires_grad_(True)
        self.decoder = DalleDecoder(**sizes, code_width=code_width)
        self.grid = image_size // self.encoder.patch_size
        init_convolutions(self)

    def pixels(self, out: Outputs) -> Tensor:
        """(B, 3, S, S) from 0 to 1."""
        return out.stream("image").data.float() * self.encoder.std + self.encoder.mean

    def code_logits(self, out: Outputs) -> Tensor:
        """(B, num_codes, S / 8, S / 8)."""
        return self.encoder.logits(out.pixels)

    def decoded(self, weights: Tensor) -> Tensor:
        return self.decoder(weights)

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64: the likeliest code of each place, row by row."""
        return self.encoder(out.stream("image").data)

    def paint(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> pixels (B, 3, S, S) from 0 to 1: the locations of the decoder's distribution."""
        grid = codes.unflatten(1, (self.grid, self.grid))
        weights = F.one_hot(grid, self.config.num_codes).permute(0, 3, 1, 2)
        locations = self.decoder(weights.to(self.decoder.input.weight.dtype))[:, :3]
        return unmapped(torch.sigmoid(locations.float()))
