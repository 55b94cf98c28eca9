"""Bins of the ab plane, as classes of colours. Zhang et al. 2016, https://arxiv.org/abs/1603.08511, section 2."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from vlpipe.models.blocks.colour.lab import EPSILON, KAPPA, OFFSET, TO_XYZ, WHITE

SIDE = 10  # of a bin
NEAREST, SIGMA = (
    5,
    5.0,
)  # of the soft encoding: the bins that share a colour, and the deviation of their weights
UNIFORM = 0.5  # lambda of equation 4: how much of the rebalancing is of a uniform distribution


class ColourBins(nn.Module):
    """Q points of the ab plane, `SIDE` apart, and the share that each has of the pixels of a data set.

    prior: (Q,), not trained; zeros until some are loaded, such as those of `pretext.colour_prior`.
    """

    points: Tensor

    def __init__(self) -> None:
        super().__init__()
        points = torch.tensor(in_gamut(), dtype=torch.float32)
        self.register_buffer("points", points, persistent=False)
        self.prior = nn.Parameter(torch.zeros(len(points)), requires_grad=False)
        self.num_bins = len(points)

    def nearest(self, ab: Tensor) -> Tensor:
        """ab (N, 2) -> the nearest bin (N,)."""
        return self._squares(ab).argmin(1)

    def soft(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """ab (N, 2) -> the five nearest bins and their weights, (N, 5) each, which sum to 1 (section 2.1)."""
        squares, bins = self._squares(ab).topk(NEAREST, dim=1, largest=False)
        return bins, (-squares / (2 * SIGMA**2)).softmax(1)

    def weights(self) -> Tensor:
        """Returns the weight of each bin (Q,): rare colours count more; the mean over the data set is 1 (equation 4)."""
        mixed = (1 - UNIFORM) * self.prior + UNIFORM / self.num_bins
        return 1 / mixed / (self.prior / mixed).sum().clamp(min=1e-12)

    def mean_colour(self, logits: Tensor, temp: float = 0.38) -> Tensor:
        """Logits (B, Q, h, w) -> ab (B, 2, h, w): the annealed mean (equation 5)."""
        shares = (logits.float() / temp).softmax(1)
        return torch.einsum("bqhw,qc->bchw", shares, self.points.to(shares.dtype))

    def _squares(self, ab: Tensor) -> Tensor:
        points = self.points.to(ab.dtype)
        return ab.square().sum(1, keepdim=True) - 2 * ab @ points.t() + points.square().sum(1)


@lru_cache(maxsize=1)
def in_gamut() -> tuple[tuple[int, int], ...]:
    """Returns the corners (a, b) of all cells of side 10 that hold a colour of sRGB: 309. The authors' list has 313."""
    values = np.arange(256) / 255
    one, other = (axis.ravel() for axis in np.meshgrid(values, values))
    cells: set[tuple[int, int]] = set()
    for channel in range(3):
        for edge in (0.0, 1.0):  # the surface of the cube: what is inside has colours between those
            rgb = np.insert(np.stack([one, other], axis=1), channel, edge, axis=1)
            found = np.floor(_ab(rgb) / SIDE).astype(int)
            cells |= {(int(a), int(b)) for a, b in np.unique(found, axis=0)}
    corners = {(SIDE * (a + i), SIDE * (b + j)) for a, b in cells for i in (0, 1) for j in (0, 1)}
    return tuple(sorted(corners))


def _ab(
    rgb: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(TO_XYZ).T / np.array(WHITE)
    f = np.where(xyz > EPSILON, np.cbrt(xyz), KAPPA * xyz + OFFSET)
    return np.stack([500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
