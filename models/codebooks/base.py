"""What a codebook is: from the pixels of an image to a grid of discrete codes. It is not trained with what predicts them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's: of the pixels


class Codebook(nn.Module):
    """Pixels (B, 3, S, S), normalised with CLIP's mean and deviation -> codes (B, (S / patch_size)^2) int64, row by row.

    num_codes: codes are below it. Weights are zeros until some are loaded, which is an error at the first use.
    """

    patch_size: int
    num_codes: int
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self._has_weights = False

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Raises ValueError if no weights were loaded."""
        if not self._has_weights:
            if not any(bool(p.any()) for p in self.parameters()):
                raise ValueError(
                    f"{type(self).__name__}: no weights were loaded; name them in `init_parts`, into codebook"
                )
            self._has_weights = True
        with torch.autocast(pixels.device.type, enabled=False):  # rounding would give other codes
            found: Tensor = self.codes(pixels.float() * self.std + self.mean)
        return found

    def codes(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1 -> codes."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Sets all weights to zeros that are not trained; called at the end of the constructor."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
