"""Segmentation and detection by heads on the patches of an image encoder: how features transfer. He et al. 2022 (MAE),
https://arxiv.org/abs/2111.06377, section 5, where UperNet and Mask R-CNN stand in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.downstream.based import BasedModel
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.outputs import Outputs

PRIOR = -2.0  # logit of a class at the start: most patches lie in no object


class OnPatches(BasedModel):
    """Base of heads over `base`, the spec of a model whose `image_tokens` are those of a square of patches, with or without
    a class token before them: ViT's kind. A hidden layer and a matrix read each patch.
    """

    STREAMS = {"image": "image:Image"}  # noqa: RUF012

    def __init__(
        self,
        *,
        base: Mapping[str, Any],
        num_outputs: int,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(base=base, tokens=tokens)
        if not hasattr(self.base, "image_tokens"):
            raise ValueError(f"base: {type(self.base).__name__} has no `image_tokens` of patches")
        width = self.base_width
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_outputs))

    def streams(self) -> dict[str, dict[str, Any]]:
        return {**super().streams(), "image": self.base.streams()["image"]}

    def patches(self, out: Outputs) -> Tensor:
        """(B, N, num_outputs). Raises ValueError if the tokens are no square of patches."""
        found = Outputs(self.base, Batch({"image": out.stream("image")}, out.batch.same)).image_tokens
        extra = found.shape[1] - isqrt(found.shape[1]) ** 2
        if extra:  # one more than a square
            found = found[:, 1:]
        if isqrt(found.shape[1]) ** 2 != found.shape[1]:
            raise ValueError(f"base: {found.shape[1] + bool(extra)} image tokens are no square of patches")
        read: Tensor = self.head(found)
        return read


class Segmenter(OnPatches):
    """Logits (B, num_classes, S, S) of the classes of pixels, S = `image_size`: each patch tells those of its own."""

    def __init__(
        self, *, base: Mapping[str, Any], num_classes: int, tokens: Mapping[str, int] | None = None
    ) -> None:
        patch = int(base.get("patch_size", 16))
        super().__init__(base=base, num_outputs=num_classes * patch**2, tokens=tokens)
        self.patch = patch

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        size = found["image"]["size"]
        mask = {"use": "pixel_classes:PixelClasses", "size": size, "num_classes": self.config.num_classes}
        return {**found, "mask": mask}

    def pixel_logits(self, out: Outputs) -> Tensor:
        x = out.patches.transpose(1, 2)
        side = isqrt(x.shape[2])
        return F.pixel_shuffle(x.unflatten(2, (side, side)), self.patch).float()


class PatchDetector(OnPatches):
    """Classes and boxes (B, N, num_classes + 4) of objects, from the patches around their centres; see `FindsObjects`.

    Without anchors and at one scale, in the manner of FCOS, Tian et al. 2019, https://arxiv.org/abs/1904.01355.
    """

    def __init__(
        self, *, base: Mapping[str, Any], num_classes: int, tokens: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(base=base, num_outputs=num_classes + 4, tokens=tokens)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias[:num_classes] = PRIOR
            last.bias[num_classes:] = PRIOR

    def streams(self) -> dict[str, dict[str, Any]]:
        return {**super().streams(), "boxes": {"use": "true_boxes:TrueBoxes"}}

    def patch_objects(self, out: Outputs) -> Tensor:
        x, num = out.patches.float(), self.config.num_classes
        return torch.cat([x[..., :num], F.softplus(x[..., num:])], dim=-1)
