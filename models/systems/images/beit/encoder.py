"""BEiT's transformer: pre-norm layers with a bias of relative positions and scaled branches.

Bao et al. 2021, https://arxiv.org/abs/2106.08254; LayerScale: Touvron et al. 2021, https://arxiv.org/abs/2103.17239.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.blocks.transformer import INIT_STD, PreNormEncoder, PreNormLayer


class RelativePositions(nn.Module):
    """A learned bias (heads, 1 + G^2, 1 + G^2) of attention scores, by how far apart two places of a grid are.

    The class token has three of its own: to a place, from a place, to itself. Zero at the start.
    """

    index: Tensor

    def __init__(self, grid: int, num_heads: int) -> None:
        super().__init__()
        index = torch.from_numpy(relative_index(grid)).to(torch.get_default_device())
        self.register_buffer("index", index, persistent=False)
        self.table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, num_heads))

    def forward(self) -> Tensor:
        return self.table[self.index].permute(2, 0, 1)


def relative_index(grid: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Returns (1 + G^2, 1 + G^2): the row of the table of each pair; the class token comes first."""
    side = 2 * grid - 1
    down, across = (axis.ravel() for axis in np.indices((grid, grid)))
    rows = (down[:, None] - down[None]) + grid - 1
    columns = (across[:, None] - across[None]) + grid - 1
    index = np.empty((1 + grid * grid,) * 2, np.int64)
    index[1:, 1:] = rows * side + columns
    index[0, :], index[:, 0], index[0, 0] = side**2, side**2 + 1, side**2 + 2
    return index


class BeitLayer(PreNormLayer):
    """As `PreNormLayer`, without a bias of keys, which changes nothing.

    layer_scale: of both branches at the start; None: none.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__(width, num_heads, drop_path, norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        scales = [
            None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in "12"
        ]
        self.scale1, self.scale2 = scales

    def forward(self, x: Tensor, first: bool = False, mask: Tensor | None = None) -> Tensor:
        """mask: float, added to the scores (heads, L, L)."""
        mixed = _scaled(self._attend(self.norm1(x), first, mask), self.scale1)
        x = (x[:, :1] if first else x) + self._drop(mixed)
        inner = self.activation(self.up(self.norm2(x)))
        return x + self._drop(_scaled(self.down(inner), self.scale2))

    def _attend(self, x: Tensor, first: bool, mask: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D / H) each
        q = q[:, :, :1] if first else q
        if mask is None:
            mixed = attend(q, k, v)
        else:
            added = (mask[:, :1] if first else mask).to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed)
        return out


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale.to(x.dtype)


class BeitEncoder(PreNormEncoder):
    """`num_layers` layers and a final norm.

    Weights start within `init_std`; the last matrix of each branch of layer l is divided by sqrt(2 l) (section 2.5).
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__(width, 0, num_heads, norm_eps=norm_eps)
        rates = [drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        layers = [BeitLayer(width, num_heads, rate, norm_eps, layer_scale) for rate in rates]
        self.blocks = nn.ModuleList(layers)
        for number, layer in enumerate(layers, 1):
            init_within(layer, init_std)
            with torch.no_grad():
                for linear in (layer.out, layer.down):
                    linear.weight.mul_(1 / math.sqrt(2 * number))


def init_within(module: nn.Module, most: float) -> None:
    """Initialises linear layers with a normal of deviation `most`, cut off at `most`, and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=most, a=-most, b=most)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
