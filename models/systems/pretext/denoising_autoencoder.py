"""Denoising autoencoder: hidden units of noisy values, from which clean ones are reconstructed; stacked layer by layer.

Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html; 2008, https://doi.org/10.1145/1390156.1390294.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention_pool import Rescaled
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2


class DenoisingAutoencoder(Model):
    """Layers of sigmoid units with tied weights. The last layer is trained; those below it are frozen and read clean values.

    widths: units of each layer; a step that adds a layer takes those below from the step before (`init_parts`). The view of
    its objective draws noise (`noise`), for layers above the first with `units` of the layer below. grey: read luminance.
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012
    grey: Tensor

    def __init__(self, *, image_size: int = 28, widths: Sequence[int] = (1000,), grey: bool = True) -> None:
        super().__init__()
        if not widths:
            raise ValueError("model: widths needs at least one layer")
        self.rescaled = Rescaled()
        self.register_buffer("grey", torch.tensor(GREY).view(3, 1, 1), persistent=False)
        sizes = [image_size**2 * (1 if grey else 3), *widths]
        self.layers = nn.ModuleList(nn.Linear(width_in, width) for width_in, width in pairwise(sizes))
        self.back_bias = nn.Parameter(torch.zeros(sizes[-2]))
        for layer, width_in, width in zip(self.layers, sizes[:-1], sizes[1:], strict=True):
            most = 4 * math.sqrt(6 / (width_in + width))  # Glorot & Bengio 2010, for sigmoids
            nn.init.uniform_(layer.weight, -most, most)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in self.layers[:-1]:
            layer.requires_grad_(False)
        self.embed_dim = sizes[-1]

    def values(self, out: Outputs) -> Tensor:
        """(B, D): pixels from 0 to 1."""
        pixels = (self.rescaled(out.stream("image").data.float()) + 1) / 2
        pixels = (pixels * self.grey).sum(1) if self.config.grey else pixels
        return pixels.flatten(1).clamp(0, 1)

    def clean(self, out: Outputs) -> Tensor:
        """(B, D): what the last layer reads, without noise."""
        x = out.values
        for layer in self.layers[:-1]:
            x = torch.sigmoid(layer(x))
        return x

    def denoised(self, out: Outputs) -> Tensor:
        """(B, D), before a sigmoid: the reconstruction of noisy values by the last layer."""
        extra = out.stream("image").extra
        if "keep" not in extra:
            raise ValueError("DenoisingAutoencoder: its objective needs a view with noise:Noise")
        noisy = out.clean * extra["keep"] + extra["added"]
        hidden = torch.sigmoid(self.layers[-1](noisy))
        weight = self.layers[-1].weight
        assert isinstance(weight, Tensor)
        return F.linear(hidden, weight.t(), self.back_bias)

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, widths[-1]), unit norm: the last layer's units for a clean picture."""
        return F.normalize(torch.sigmoid(self.layers[-1](out.clean)).float(), dim=-1)
