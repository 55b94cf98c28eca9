"""Context encoder: the missing part of an image, from what is around it.

Pathak et al. 2016, https://arxiv.org/abs/1604.07379.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.blocks.attention_pool import Rescaled
from vlpipe.models.blocks.convnets.hole_nets import HoleDecoder, HoleEncoder, halvings, middle
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class ContextEncoder(Model):
    """Defaults are those of the authors' code for a hole in the middle. The view of its objective makes the hole (`holes`).

    predicts: "centre", the middle square of half the side; "image", all of it, for holes at random places. Hidden pixels are
    read as the mean colour. encoder_width, decoder_width: of the widest and narrowest feature map, an eighth of the last.
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 128,
        bottleneck: int = 4000,
        encoder_width: int = 64,
        decoder_width: int = 64,
        predicts: Literal["centre", "image"] = "centre",
    ) -> None:
        super().__init__()
        if predicts not in ("centre", "image"):
            raise ValueError(f"model: predicts is centre or image, got {predicts!r}")
        self.hole_size = image_size // 2 if predicts == "centre" else image_size
        halvings(self.hole_size)
        self.encoder = HoleEncoder(image_size, encoder_width, bottleneck)
        self.decoder = HoleDecoder(self.hole_size, decoder_width, bottleneck)
        self.embed_dim, self.rescaled = bottleneck, Rescaled()

    def code(self, out: Outputs) -> Tensor:
        """(B, bottleneck, 1, 1): of what is visible."""
        image = out.stream("image")
        pixels = image.data
        if "hidden" in image.extra:
            pixels = pixels.masked_fill(image.extra["hidden"][:, None], 0.0)
        found: Tensor = self.encoder(pixels)
        return found

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, bottleneck), unit norm."""
        return F.normalize(out.code.flatten(1).float(), dim=-1)

    def filled(self, out: Outputs) -> Tensor:
        """(B, 3, h, h) from -1 to 1."""
        found: Tensor = self.decoder(out.code)
        return found

    def true_part(self, out: Outputs) -> Tensor:
        """(B, 3, h, h) from -1 to 1: what `filled` is of."""
        found: Tensor = self.rescaled(middle(out.stream("image").data.float(), self.hole_size))
        return found
