"""ViT: a transformer over the patches of an image that tells its class. Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.patches import PatchEmbed, resize_positions
from vlpipe.models.blocks.transformer import PreNormEncoder
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Vit(Model):
    """Defaults are ViT-B/16's. The class is read from the class token.

    head: "mlp", with one hidden layer of `width` and tanh, as in pretraining; "linear", as in finetuning. dropout: after the
    embeddings and each linear layer but that of queries, keys and values. Saved weights are read at another `image_size`
    with positions interpolated; with another `num_classes` or `head`, their head is replaced by a linear one of zeros
    (section 3.2).
    """

    STREAMS = {"image": "image:Image", "label": "label:Label"}  # noqa: RUF012
    FORMATS = ("vit",)
    CHAIN = ("vision.blocks",)

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        head: Literal["mlp", "linear"] = "mlp",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if head not in ("mlp", "linear"):
            raise ValueError(f"model: head is mlp or linear, got {head!r}")
        self.patches = PatchEmbed(image_size, patch_size, width)
        rates: dict[str, Any] = {"drop_path": drop_path, "dropout": dropout}
        self.vision = PreNormEncoder(width, layers, heads, norm_eps=norm_eps, **rates)
        self.hidden = nn.Linear(width, width) if head == "mlp" else None
        self.classifier = nn.Linear(width, num_classes)
        self.dropout, self.embed_dim = dropout, width
        for linear in self.modules():
            if isinstance(linear, nn.Linear):  # as in the authors' code
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.classifier.weight)

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["label"]["num_classes"] = self.config.num_classes
        return found

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        num_tokens, num_classes = self.patches.positions.shape[1], self.config.num_classes
        state = {**state, "patches.positions": resize_positions(state["patches.positions"], num_tokens)}
        saved = len(state["classifier.bias"]), "hidden.weight" in state
        if self.config.head == "linear" and saved != (num_classes, False):
            state = {name: value for name, value in state.items() if not name.startswith("hidden.")}
            state["classifier.weight"] = torch.zeros(num_classes, self.embed_dim)
            state["classifier.bias"] = torch.zeros(num_classes)
        return state

    def class_token(self, out: Outputs) -> Tensor:
        """(B, width): the class token after the last norm."""
        x = F.dropout(self.patches(out.stream("image").data), self.dropout, self.training)
        return self.vision(x, first=True)[:, 0]

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm: the class token."""
        return F.normalize(out.class_token.float(), dim=-1)

    def logits(self, out: Outputs) -> Tensor:
        """(B, num_classes)."""
        x = out.class_token
        return self.classifier(x if self.hidden is None else torch.tanh(self.hidden(x)))
