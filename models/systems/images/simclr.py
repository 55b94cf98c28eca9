"""SimCLR: two distorted views of an image are near in a projection of its ResNet. Chen et al. 2020, https://arxiv.org/abs/2002.05709."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.blocks.mlp_head import MlpHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.siamese.norms import GlobalBatchNorm, replace_norms
from vlpipe.models.siamese.resnet import ImageResNet, Stem


class SimClr(Model):
    """Defaults are ResNet-50's. Both views pass as one batch, whose norms count the rows of all ranks.

    stem: see `ImageResNet`. projection_dim: of the vectors that are compared. head_norm: batch norms in the head, as in the
    released code; the paper's has none.
    """

    STREAMS = {"image": "distorted:Distorted", "second": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 224,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        stem: Stem = "large",
        projection_dim: int = 128,
        head_norm: bool = False,
    ) -> None:
        super().__init__()
        self.vision = ImageResNet(depths=layers, width=width, stem=stem)
        self.embed_dim = self.vision.width_out
        widths = (self.embed_dim, self.embed_dim, projection_dim)
        self.head = MlpHead(widths, norm=head_norm, last="scale" if head_norm else "none", last_bias=False)
        replace_norms(self, GlobalBatchNorm)

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["second"]["size"] = self.config.image_size
        return found

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, embed_dim), unit norm: what the ResNet says, before the head."""
        return F.normalize(self.vision(out.stream("image").data).float(), dim=-1)

    def view_feats(self, out: Outputs) -> Tensor:
        """(B, 2, projection_dim), unit norm: both views."""
        both = torch.cat([out.stream(name).data for name in self.STREAMS])
        found = F.normalize(self.head(self.vision(both)).float(), dim=-1)
        return found.unflatten(0, (2, -1)).transpose(0, 1)
