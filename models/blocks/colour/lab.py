"""CIE Lab (D65) of normalised pixels, as skimage and OpenCV compute it; and the pixels of a Lab picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.mobilenet_v2 import CLIP_MEAN, CLIP_STD

# IEC 61966-2-1 (sRGB) to XYZ, and the white point D65 of 2 degrees
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
EPSILON, KAPPA, OFFSET = 0.008856, 7.787, 16 / 116


class Lab(nn.Module):
    """Pixels (B, 3, H, W), normalised with CLIP's mean and deviation -> L from 0 to 100 and a, b about -110 to 110, fp32."""

    mean: Tensor
    std: Tensor
    to_xyz: Tensor

    def __init__(self) -> None:
        super().__init__()
        matrix = torch.tensor(TO_XYZ, dtype=torch.float64) / torch.tensor(WHITE, dtype=torch.float64)[:, None]
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.register_buffer("to_xyz", matrix.float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            rgb = pixels.float() * self.std + self.mean
            linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
            xyz = torch.einsum("ij,bjhw->bihw", self.to_xyz.to(linear.dtype), linear)
            # the cube root has no gradient at 0, where the line holds
            f = torch.where(xyz > EPSILON, xyz.clamp(min=EPSILON) ** (1 / 3), KAPPA * xyz + OFFSET)
            x, y, z = f.unbind(1)
            return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)

    def rgb(self, lab: Tensor) -> Tensor:
        """Returns sRGB from 0 to 1, (B, 3, H, W), of a Lab picture; colours that sRGB does not have are cut off."""
        lightness, a, b = lab.float().unbind(1)
        y = (lightness + 16) / 116
        f = torch.stack([y + a / 500, y, y - b / 200], dim=1)
        xyz = torch.where(f**3 > EPSILON, f**3, (f - OFFSET) / KAPPA)
        linear = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.to_xyz).to(xyz.dtype), xyz).clamp(0, 1)
        found = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return found.clamp(0, 1)
