"""Linear and partial probing by gradient: a linear classifier on the embedding of an image, and which layers it trains.

He et al. 2022 (MAE), https://arxiv.org/abs/2111.06377, sections 4.3 and A.1; Yosinski et al. 2014, https://arxiv.org/abs/1411.1792.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlpipe.models.build import build
from vlpipe.models.interface.capabilities import EmbedsImages, need
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

SYSTEMS = "vlpipe.models.systems"


class Probed(Model):
    """A classifier over `encoder`, the spec of any model that embeds images, whose weights `init_parts` load into `encoder`.

    What is trained is the recipe's `train`, globs of parameter names: `head.*` alone is linear probing; with the layers of
    the last k blocks, such as `encoder.vision.blocks.2.*` and `encoder.vision.norm.*`, partial probing. batch_norm: norms
    the embedding over the batch before the classifier, without scale or shift (MAE's linear probe); without it the
    embedding has unit norm.
    """

    STREAMS = {"image": "image:Image", "label": "label:Label"}  # noqa: RUF012

    def __init__(self, *, encoder: Mapping[str, Any], num_classes: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.encoder = build(dict(encoder), SYSTEMS)
        need(self.encoder, [EmbedsImages], "model: encoder")
        width = getattr(self.encoder, "embed_dim", None)
        if not isinstance(width, int):
            raise ValueError(f"model: encoder: a {type(self.encoder).__name__} does not say its `embed_dim`")
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if batch_norm else None
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.embed_dim = width

    def streams(self) -> dict[str, dict[str, Any]]:
        size = self.encoder.streams()["image"]["size"]
        return {
            "image": {"use": self.STREAMS["image"], "size": size},
            "label": {"use": self.STREAMS["label"], "num_classes": self.config.num_classes},
        }

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, E), unit norm: the encoder's."""
        found: Tensor = Outputs(self.encoder, out.batch).image_feat
        return found

    def logits(self, out: Outputs) -> Tensor:
        """(B, num_classes)."""
        x = out.image_feat
        found: Tensor = self.head(x if self.norm is None else self.norm(x))
        return found
