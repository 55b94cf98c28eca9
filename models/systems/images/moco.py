"""MoCo: an image's view is told from a queue of other images' keys, which a moving average of the network computes.

He et al. 2020, https://arxiv.org/abs/1911.05722; version 2: Chen et al. 2020, https://arxiv.org/abs/2003.04297.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.blocks.mlp_head import MlpHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.siamese.norms import replace_norms, split_norm
from vlpipe.models.siamese.resnet import ImageResNet, Stem
from vlpipe.models.siamese.shuffle import encode_shuffled


class Moco(Model):
    """Defaults are those of version 1 with ResNet-50; the network computes queries, its teacher keys.

    stem: see `ImageResNet`. projection_dim: of queries and keys. head: "linear", or "mlp" (version 2). Batch norms count the
    rows of their rank, and keys are computed with the rows of all ranks in another order. norm_parts: batch norms count the
    rows of each of so many parts of a rank's batch, as if it were so many ranks.
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
        head: Literal["linear", "mlp"] = "linear",
        norm_parts: int = 1,
    ) -> None:
        super().__init__()
        if head not in ("linear", "mlp") or norm_parts < 1:
            raise ValueError(
                f"model: head is linear or mlp and norm_parts at least 1, got {head!r}, {norm_parts}"
            )
        self.vision = ImageResNet(depths=layers, width=width, stem=stem)
        self.embed_dim, self.projection_dim = self.vision.width_out, projection_dim
        hidden = [self.embed_dim] if head == "mlp" else []
        self.head = MlpHead((self.embed_dim, *hidden, projection_dim))
        if norm_parts > 1:
            replace_norms(self, split_norm(norm_parts))

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["second"]["size"] = self.config.image_size
        return found

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, embed_dim), unit norm: what the ResNet says, before the head."""
        return F.normalize(self.vision(out.stream("image").data).float(), dim=-1)

    def query(self, out: Outputs) -> Tensor:
        """(B, projection_dim), unit norm: the first view."""
        return self._projected(out.stream("image").data)

    def key(self, out: Outputs) -> Tensor:
        """(B, projection_dim), unit norm: the second view, computed among other rows; no gradient."""
        pixels = out.stream("second").data
        if not self.training or distributed.world_size() * self.config.norm_parts == 1:
            return self._projected(pixels)
        step = out.batch.step
        return encode_shuffled(self._projected, pixels, seed=(step.number << 16) + step.micro)

    def _projected(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.head(self.vision(pixels)).float(), dim=-1)
