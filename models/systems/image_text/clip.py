"""CLIP: an image and a text encoder trained so that pairs are near. Radford et al. 2021, https://arxiv.org/abs/2103.00020."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.image_encoder import build_image_encoder
from vlpipe.models.blocks.modified_resnet import ModifiedResNet
from vlpipe.models.blocks.patches import PatchEmbed
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.blocks.transformer import PreNormEncoder, causal_mask, init_clip
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

MAX_LOGIT_SCALE = math.log(100)
RESNET_OUT = 32  # channels out of the ResNet per `vision_width`


class Clip(Model):
    """Defaults are ViT-B/32's. `end`: the id of the end token, at which the text's embedding is read.

    vision_layers: four numbers of blocks make a ResNet (RN50: [3, 4, 6, 3], vision_width 64, vision_heads 32, embed_dim
    1024). vision: another image encoder, such as {use: "mobilenet_v2:MobileNetV2Tokens"}, whose first token, `vision_width`
    wide, is projected. text: "bag_of_words" is the mean of the words' embeddings, of the paper's figure 2, without layers or
    positions.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    FORMATS = ("clip", "open_clip")

    def __init__(
        self,
        *,
        vocab_size: int,
        end: int,
        image_size: int = 224,
        patch_size: int = 32,
        vision_width: int = 768,
        vision_layers: int | Sequence[int] = 12,
        vision_heads: int = 12,
        vision: Mapping[str, Any] | None = None,
        text: Literal["transformer", "bag_of_words"] = "transformer",
        text_width: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        max_text_length: int = 77,
        embed_dim: int = 512,
        activation: str = "quick_gelu",
    ) -> None:
        super().__init__()
        width = vision_width if isinstance(vision_layers, int) else RESNET_OUT * vision_width
        if text not in ("transformer", "bag_of_words"):
            raise ValueError(f"model: text is transformer or bag_of_words, got {text!r}")
        if (vision is None and width % vision_heads) or text_width % text_heads or not 0 <= end < vocab_size:
            raise ValueError(
                f"model: heads must divide the width, and end must be below vocab_size: vision {width} / {vision_heads}, "
                f"text {text_width} / {text_heads}, end {end} of {vocab_size}"
            )
        blocks: dict[str, Any] = {"norm_eps": 1e-5, "activation": activation}
        if vision is not None:
            self.vision = build_image_encoder(vision, image_size=image_size, width=vision_width)
            self.image_proj = nn.Linear(vision_width, embed_dim, bias=False)
            nn.init.normal_(self.image_proj.weight, std=vision_width**-0.5)
        elif isinstance(vision_layers, int):
            self.patches = PatchEmbed(image_size, patch_size, vision_width, bias=False)
            self.pre_norm = nn.LayerNorm(vision_width)
            self.vision = PreNormEncoder(vision_width, vision_layers, vision_heads, **blocks)
            self.image_proj = nn.Linear(vision_width, embed_dim, bias=False)
            init_clip(self.vision)
            for matrix in (self.patches.positions, self.patches.class_token, self.image_proj.weight):
                nn.init.normal_(matrix, std=vision_width**-0.5)
        else:
            self.resnet = ModifiedResNet(image_size, vision_layers, vision_width, vision_heads, embed_dim)
        if text == "transformer":
            self.words = TextEmbed(vocab_size, max_text_length, text_width, norm_eps=None)
            self.text = PreNormEncoder(text_width, text_layers, text_heads, **blocks)
            init_clip(self.text)
            nn.init.normal_(self.words.words.weight, std=0.02)
            nn.init.normal_(self.words.positions.weight, std=0.01)
        else:
            self.bag = nn.Embedding(vocab_size, text_width)
            nn.init.normal_(self.bag.weight, std=0.02)
        self.text_proj = nn.Linear(text_width, embed_dim, bias=False)
        nn.init.normal_(self.text_proj.weight, std=text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.embed_dim = embed_dim

    def image_feat(self, out: Outputs) -> Tensor:
        pixels = out.stream("image").data
        if self.config.vision is not None:
            return F.normalize(self.image_proj(self.vision(pixels, first=True)[:, 0]).float(), dim=-1)
        if isinstance(self.config.vision_layers, int):
            x = self.vision(self.pre_norm(self.patches(pixels)), first=True)[:, 0]
            return F.normalize(self.image_proj(x).float(), dim=-1)
        return F.normalize(self.resnet(pixels).float(), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        ids, mask = out.stream("text").data, out.stream("text").mask
        if self.config.text == "transformer":
            x = self.text(self.words(ids), causal_mask(ids.shape[1], ids.device))
            x = x[torch.arange(len(ids)), self._end_of(out)]
        else:
            real = torch.ones_like(ids) if mask is None else mask.int()
            x = (self.bag(ids) * real[:, :, None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.text_proj(x).float(), dim=-1)

    def _end_of(self, out: Outputs) -> Tensor:
        """Position of the end token; of a text that was cut, the last position."""
        text = out.stream("text")
        is_end = text.data == self.config.end
        last = text.mask.sum(1) - 1 if text.mask is not None else torch.full_like(text.data[:, 0], -1)
        return torch.where(is_end.any(1), is_end.int().argmax(1), last)

    @property
    def temp(self) -> Tensor:
        return (-self.logit_scale).exp()

    @torch.no_grad()
    def constrain(self) -> None:
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
