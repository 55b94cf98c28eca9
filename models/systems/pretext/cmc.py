"""CMC: the lightness and the colours of an image are two views, each with a network of its own, and near.

Tian et al. 2019, https://arxiv.org/abs/1906.05849.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.colour.lab import Lab
from vlpipe.models.blocks.mlp_head import MlpHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.siamese.resnet import ImageResNet, Stem
from vlpipe.models.video.resnet import init_weights

View = Literal["l", "ab", "lab"]
CHANNELS = {"l": slice(0, 1), "ab": slice(1, 3), "lab": slice(0, 3)}
# least and largest values of L, a and b, as in the authors' code: channels are normalised to about -0.5 to 0.5
LEAST, MOST = (0.0, -86.183, -107.857), (100.0, 98.233, 94.478)


class Cmc(Model):
    """Defaults are two ResNet-50 of half the width, of L and of ab.

    num_rows: of the data set, whose rows have a column `row_index` (`pretext.row_index`); a bank has a place for each.
    views: the channels that each network reads; ["l", "l"] is the same view twice. stem: see `ImageResNet`.
    """

    STREAMS = {"image": "distorted:Distorted", "row": "row_index:RowIndex"}  # noqa: RUF012
    centre: Tensor
    extent: Tensor

    def __init__(
        self,
        *,
        num_rows: int,
        image_size: int = 224,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 32,
        stem: Stem = "large",
        projection_dim: int = 128,
        views: Sequence[View] = ("l", "ab"),
    ) -> None:
        super().__init__()
        if len(views) != 2 or not set(views) <= set(CHANNELS) or num_rows < 1:
            raise ValueError(
                f"model: num_rows must be at least 1 and views two of {', '.join(CHANNELS)}, got {num_rows}, {views}"
            )
        self.num_rows, self.projection_dim, self.lab = num_rows, projection_dim, Lab()
        least, most = (torch.tensor(values).view(3, 1, 1) for values in (LEAST, MOST))
        self.register_buffer("centre", (least + most) / 2, persistent=False)
        self.register_buffer("extent", most - least, persistent=False)
        self.vision = nn.ModuleList(_resnet(view, layers, width, stem) for view in views)
        wide = int(self.vision[0].width_out)  # type: ignore[arg-type]
        self.head = nn.ModuleList(MlpHead((wide, projection_dim)) for _ in views)
        self.embed_dim = 2 * wide

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["row"]["num_rows"] = self.num_rows
        return found

    def pooled(self, out: Outputs) -> list[Tensor]:
        """(B, width_out) of each view: what its ResNet says, before the head."""
        lab = (self.lab(out.stream("image").data) - self.centre) / self.extent
        views = (lab[:, CHANNELS[view]] for view in self.config.views)
        return [net(x) for net, x in zip(self.vision, views, strict=True)]

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, embed_dim), unit norm: both views beside each other."""
        both = [F.normalize(x.float(), dim=-1) for x in out.pooled]
        return F.normalize(torch.cat(both, dim=1), dim=-1)

    def view_feats(self, out: Outputs) -> Tensor:
        """(B, 2, projection_dim), unit norm."""
        found = [head(x) for head, x in zip(self.head, out.pooled, strict=True)]
        return F.normalize(torch.stack(found, dim=1).float(), dim=-1)


def _resnet(view: View, layers: Sequence[int], width: int, stem: Stem) -> ImageResNet:
    """Returns a ResNet of the channels of a view."""
    net = ImageResNet(depths=layers, width=width, stem=stem)
    old, channels = net.conv1, CHANNELS[view]
    size, stride = int(old.kernel_size[0]), int(old.stride[0])
    net.conv1 = nn.Conv2d(channels.stop - channels.start, width, size, stride, size // 2, bias=False)
    init_weights(net)
    return net
