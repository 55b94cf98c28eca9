"""Colorization: the colours of a grey image, as bins of the ab plane. Zhang et al. 2016, https://arxiv.org/abs/1603.08511."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.colour.bins import ColourBins
from vlpipe.models.blocks.colour.lab import Lab
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

MIDDLE = 50.0  # of L, which is read from -50 to 50
OUT = 4  # pixels of the picture per place of the prediction
# Table 4 of the paper: width as a multiple of the first, layers, stride of the last layer, dilation; the seventh is the last
# whose features are used, the eighth predicts at twice the resolution
STAGES = ((1, 2, 2, 1), (2, 2, 2, 1), (4, 3, 2, 1), (8, 3, 1, 1), (8, 3, 1, 2), (8, 3, 1, 2), (8, 3, 1, 1))


class ColourPrior(Model):
    """The share of each bin among the pixels of a data set: the part `bins` of a `Colorization`."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = ColourBins()


class Colorization(Model):
    """Defaults are the paper's; a convolution per layer, a batch norm without scale or shift at the end of each stage.

    width: of the first stage. `bins.prior`, by which rare colours count more, is a part that `init_parts` loads
    (`pretext.colour_prior`).
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012

    def __init__(self, *, image_size: int = 176, width: int = 64) -> None:
        super().__init__()
        if image_size % 8:
            raise ValueError(f"model: image_size must be a multiple of 8, got {image_size}")
        self.lab, self.bins = Lab(), ColourBins()
        stages: list[nn.Module] = []
        width_in = 1
        for multiple, num_layers, stride, dilation in STAGES:
            layers: list[nn.Module] = []
            for k in range(num_layers):
                step = stride if k == num_layers - 1 else 1
                options: dict[str, Any] = {"stride": step, "padding": dilation, "dilation": dilation}
                layers += [nn.Conv2d(width_in, multiple * width, 3, **options), nn.ReLU()]
                width_in = multiple * width
            stages.append(nn.Sequential(*layers, nn.BatchNorm2d(width_in, affine=False)))
        self.vision = nn.Sequential(*stages)
        self.embed_dim, wide = width_in, 4 * width
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width_in, wide, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
        )
        self.colour_head = nn.Conv2d(wide, self.bins.num_bins, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.colour_head.weight, std=0.01)

    def lab_pixels(self, out: Outputs) -> Tensor:
        """(B, 3, S, S): L, a, b."""
        return self.lab(out.stream("image").data)

    def vision_maps(self, out: Outputs) -> Tensor:
        """(B, 8 width, S / 8, S / 8): the seventh stage, of L alone."""
        lightness = out.lab_pixels[:, :1] - MIDDLE
        found: Tensor = self.vision(lightness / MIDDLE)
        return found

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, 8 width), unit norm: the mean place of the seventh stage; of L alone."""
        return F.normalize(out.vision_maps.mean((2, 3)).float(), dim=-1)

    def colour_logits(self, out: Outputs) -> Tensor:
        """(B, Q, S / 4, S / 4)."""
        found: Tensor = self.colour_head(self.up(out.vision_maps))
        return found

    def true_ab(self, out: Outputs) -> Tensor:
        """(B, 2, S / 4, S / 4): every fourth pixel's, as in the authors' code."""
        return out.lab_pixels[:, 1:, ::OUT, ::OUT]

    def coloured(self, out: Outputs) -> Tensor:
        """(B, 3, S, S) from 0 to 1: the picture with its own L and the predicted colours."""
        lightness = out.lab_pixels[:, :1]
        ab = self.bins.mean_colour(out.colour_logits)
        wide = F.interpolate(ab, size=lightness.shape[2:], mode="bilinear", align_corners=False)
        return self.lab.rgb(torch.cat([lightness, wide], dim=1))
