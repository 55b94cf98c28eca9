"""MobileNetV2: a small classifier of images, and features of it. Sandler et al. 2018, https://arxiv.org/abs/1801.04381."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.mobilenet_v2 import MobileNetV2Features
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class MobileNetV2(Model):
    """num_classes: of the classifier. multiplier: of the width. norm_eps: of batch norm; None for weights that it is folded
    into.

    `load` also reads Keras's weights as an .npz of arrays whose names end in Keras's layer names, with batch norm folded
    in: `models.layouts.images.mobilenet_v2`.
    """

    STREAMS = {"image": "image:Image"}  # noqa: RUF012
    FORMATS = ("mobilenet_v2",)

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        image_size: int = 224,
        multiplier: float = 1.0,
        norm_eps: float | None = 1e-3,
    ) -> None:
        super().__init__()
        self.backbone = MobileNetV2Features(multiplier=multiplier, norm_eps=norm_eps)
        self.embed_dim = self.backbone.num_channels
        self.classifier = nn.Linear(self.embed_dim, num_classes)

    @classmethod
    def load(cls, source: str | Path, /, **changes: Any) -> Any:
        if Path(source).suffix == ".npz":
            from vlpipe.models.layouts.images.mobilenet_v2 import load_keras

            return load_keras(cls, Path(source), changes)
        return super().load(source, **changes)

    def pooled(self, out: Outputs) -> Tensor:
        """(B, num_channels): the mean of the feature map."""
        return self.backbone(out.stream("image").data).mean(dim=(2, 3))

    def image_feat(self, out: Outputs) -> Tensor:
        return F.normalize(out.pooled.float(), dim=-1)

    def logits(self, out: Outputs) -> Tensor:
        """(B, num_classes), of the classes of the weights."""
        return self.classifier(out.pooled)
