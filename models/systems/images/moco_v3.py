"""MoCo v3: a ViT whose two views predict each other's keys within the batch. Chen et al. 2021, https://arxiv.org/abs/2104.02057."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.mlp_head import MlpHead
from vlpipe.models.blocks.patches import PatchEmbed
from vlpipe.models.blocks.transformer import PreNormEncoder
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.siamese.norms import GlobalBatchNorm, replace_norms


class MocoV3(Model):
    """Defaults are ViT-B/16's. Positions are fixed; batch norms, in the heads, count the rows of all ranks.

    train_patches: the patch projection, which otherwise stays random (the paper's remedy for unstable training). hidden:
    width of the hidden layers of the heads. projection_dim: of queries and keys.
    """

    STREAMS = {"image": "distorted:Distorted", "second": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        train_patches: bool = False,
        hidden: int = 4096,
        projection_dim: int = 256,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(image_size, patch_size, width, position="sincos")
        self.vision = PreNormEncoder(width, layers, heads)
        self.projector = MlpHead((width, hidden, hidden, projection_dim), norm=True, last="fixed")
        self.predictor = MlpHead((projection_dim, hidden, projection_dim), norm=True, last="fixed")
        self.embed_dim = width
        for part in (*self.patches.modules(), *self.vision.modules()):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        most = math.sqrt(3 / width)  # for queries, keys and values each as a matrix of its own
        for name, parameter in self.vision.named_parameters():
            if name.endswith("qkv.weight"):
                nn.init.uniform_(parameter, -most, most)
        nn.init.normal_(self.patches.class_token, std=1e-6)
        self.patches.patch.requires_grad_(train_patches)
        replace_norms(self, GlobalBatchNorm)

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["second"]["size"] = self.config.image_size
        return found

    def teacher_copy(self) -> nn.Module:
        copy = super().teacher_copy()
        copy.predictor = nn.Identity()
        return copy

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm: the class token."""
        return F.normalize(self._token(out.stream("image").data).float(), dim=-1)

    def queries(self, out: Outputs) -> Tensor:
        """(B, 2, projection_dim), unit norm: what each view predicts."""
        return _unit([self.predictor(x) for x in self._projected(out)])

    def keys(self, out: Outputs) -> Tensor:
        """(B, 2, projection_dim), unit norm: what is predicted, of each view."""
        return _unit(list(self._projected(out)))

    def _projected(self, out: Outputs) -> Iterator[Tensor]:
        for name in self.STREAMS:
            yield self.projector(self._token(out.stream(name).data))

    def _token(self, pixels: Tensor) -> Tensor:
        return self.vision(self.patches(pixels), first=True)[:, 0]


def _unit(views: list[Tensor]) -> Tensor:
    return F.normalize(torch.stack(views, dim=1).float(), dim=-1)
