"""AlexNet's convolutions. Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824; pools are Caffe's, which round up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.video.resnet import init_weights

WIDTHS = (96, 256, 384, 384, 256)
Norm = Literal["none", "batch"]


class AlexNet(nn.Module):
    """Pixels (B, 3, H, W) -> maps (B, widths[4], h, w): five convolutions with ReLU, max pools of 3 with stride 2.

    stem: "large", 11x11 with `stride` and `pad`, and 5x5; "small", for small pictures: 3x3 and 3x3, both without stride.
    groups: of the second, fourth and fifth convolution (2 as in the original, which had two GPUs). norm: "batch" for a batch
    norm without scale or shift after the last three (context prediction). After the first two pools, "large" normalises
    across channels.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = WIDTHS,
        stem: Literal["large", "small"] = "large",
        stride: int = 4,
        pad: int = 0,
        groups: int = 1,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        if stem not in ("large", "small") or norm not in ("none", "batch") or len(widths) != 5:
            raise ValueError(
                f"AlexNet: five widths, stem large or small, norm none or batch; got {list(widths)}, {stem!r}, {norm!r}"
            )
        is_small = stem == "small"
        first = nn.Conv2d(
            3, widths[0], 3 if is_small else 11, 1 if is_small else stride, 1 if is_small else pad
        )
        second = 3 if is_small else 5
        self.convs = nn.ModuleList(
            [
                first,
                nn.Conv2d(widths[0], widths[1], second, padding=second // 2, groups=groups),
                nn.Conv2d(widths[1], widths[2], 3, padding=1),
                nn.Conv2d(widths[2], widths[3], 3, padding=1, groups=groups),
                nn.Conv2d(widths[3], widths[4], 3, padding=1, groups=groups),
            ]
        )
        norms = [nn.BatchNorm2d(w, affine=False) if norm == "batch" else nn.Identity() for w in widths[2:]]
        self.norms = nn.ModuleList(norms)
        local = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.local: nn.Module = nn.Identity() if is_small else local
        self.width_out = widths[4]
        init_weights(self)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, widths[4], h, w): the fifth convolution, before its pool."""
        x = pixels
        for conv in self.convs[:2]:
            x = self.local(pool(F.relu(conv(x))))
        for conv, norm in zip(self.convs[2:], self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


def pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> about half of H and W: the maximum of 3x3 with stride 2; what is left at the edge counts, too."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def pooled_size(net: nn.Module, size: int) -> int:
    """Returns how many values `pool` leaves of the maps of a picture of `size` x `size`, from the layers' sizes alone.

    Raises ValueError if the picture is too small for three pools.
    """
    assert isinstance(net, AlexNet)
    first = net.convs[0]
    assert isinstance(first, nn.Conv2d)
    side = (size + 2 * int(first.padding[0]) - first.kernel_size[0]) // first.stride[0] + 1
    for _ in range(3):
        if side < 2:
            raise ValueError(f"AlexNet: pictures of {size} pixels are too small for its three pools")
        side = -(-(side - 3) // 2) + 1
    return net.width_out * side * side
