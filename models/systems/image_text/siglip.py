"""SigLIP: an image and a text encoder that judge each pair of the batch by itself, with a sigmoid.

Zhai et al. 2023, https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention_pool import PatchVit, PoolingHead, Rescaled, init_xavier
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.blocks.transformer import PreNormEncoder
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

INIT_SCALE, INIT_BIAS = 10.0, -10.0  # section 3.2: t = exp(t'), t' = log 10; b = -10


class Siglip(Model):
    """Defaults are those of ViT-B/16. Images and texts share a space of `vision_width` values.

    pad: the id with which each text is filled up to `max_text_length`. Padding is read, and a text's embedding is that of
    the last position, as in the authors' code; so how far a batch was padded changes nothing. Pixels are CLIP-normalised,
    as all streams of images; the tower sees them from -1 to 1. vision_mlp, text_mlp: None for 4 x width.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    FORMATS = ("siglip",)

    def __init__(
        self,
        *,
        vocab_size: int,
        pad: int,
        image_size: int = 224,
        patch_size: int = 16,
        vision_width: int = 768,
        vision_layers: int = 12,
        vision_heads: int = 12,
        vision_mlp: int | None = None,
        text_width: int = 768,
        text_layers: int = 12,
        text_heads: int = 12,
        text_mlp: int | None = None,
        max_text_length: int = 64,
        position: str = "learned",
    ) -> None:
        super().__init__()
        layer: dict[str, Any] = {"activation": "gelu_tanh", "norm_eps": 1e-6, "mlp_width": vision_mlp}
        sizes = (image_size, patch_size, vision_width, vision_layers, vision_heads)
        self.rescaled = Rescaled()
        self.vision = PatchVit(*sizes, position=position, **layer)
        self.head = PoolingHead(vision_width, vision_heads, **layer)
        self.words = TextEmbed(vocab_size, max_text_length, text_width, norm_eps=None)
        self.text = PreNormEncoder(text_width, text_layers, text_heads, **{**layer, "mlp_width": text_mlp})
        self.text_proj = nn.Linear(text_width, vision_width)
        init_xavier(self)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(INIT_SCALE)]))
        self.logit_bias = nn.Parameter(torch.tensor([INIT_BIAS]))
        self.embed_dim = vision_width

    def image_feat(self, out: Outputs) -> Tensor:
        tokens = self.vision(self.rescaled(out.stream("image").data))
        return F.normalize(self.head(tokens).float(), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        ids, mask, pad = out.stream("text").data, out.stream("text").mask, self.config.pad
        if mask is not None:
            ids = ids.masked_fill(~mask, pad)
        ids = F.pad(ids, (0, self.config.max_text_length - ids.shape[1]), value=pad)
        return F.normalize(self.text_proj(self.text(self.words(ids))[:, -1]).float(), dim=-1)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.vision.fitted(state, "vision.positions")

    @property
    def temp(self) -> Tensor:
        return (-self.logit_scale[0]).exp()
