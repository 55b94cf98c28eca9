"""CoCa: an image encoder, and a text decoder whose lower half sees the text alone, for a contrast, and whose upper half sees
the image, for captions. Yu et al. 2022, https://arxiv.org/abs/2205.01917.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention_pool import AttentionPool, PatchVit
from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.decoder import DecoderLayer
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.blocks.transformer import INIT_STD, causal_mask, init_vit
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

MIN_TEMP = 0.01


class Coca(Model):
    """Defaults are those of CoCa-Base (table 1). Both towers are `width` wide, as is the space that images and texts share.

    pooling: "cascade", the paper's default: the contrastive pooler reads what the captioning pooler returns; "parallel":
    both read the encoder's tokens (its figure 2). queries: of the captioning pooler: the image tokens that the decoder sees.
    A text's embedding is that of a learned token after its last one, which sees no padding and which no word sees; its
    position is a part of it, so padding does not move it. start, end: the tokens before and after each text. vision_mlp,
    text_mlp: None for 4 x width. The temperature stays above 0.01, as CLIP's; the paper names no bound.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_tokens",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        start: int,
        end: int,
        image_size: int = 288,
        patch_size: int = 18,
        width: int = 768,
        heads: int = 12,
        vision_layers: int = 12,
        vision_mlp: int | None = None,
        unimodal_layers: int = 12,
        multimodal_layers: int = 12,
        text_mlp: int | None = None,
        max_text_length: int = 64,
        queries: int = 256,
        pooling: str = "cascade",
        position: str = "learned",
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if pooling not in ("cascade", "parallel"):
            raise ValueError(f"model: pooling is cascade or parallel, got {pooling!r}")
        sizes = (image_size, patch_size, width, vision_layers, heads)
        self.vision = PatchVit(*sizes, position=position, mlp_width=vision_mlp)
        self.caption_pool, self.caption_norm = AttentionPool(width, heads, queries), nn.LayerNorm(width)
        self.contrast_pool, self.contrast_norm = AttentionPool(width, heads, 1), nn.LayerNorm(width)
        self.words = TextEmbed(vocab_size, max_text_length, width, norm_eps=None)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.unimodal, self.multimodal = (
            nn.ModuleList(DecoderLayer(width, heads, cross=cross, mlp_width=text_mlp) for _ in range(num))
            for cross, num in ((False, unimodal_layers), (True, multimodal_layers))
        )
        self.cls_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.word_head = nn.Linear(width, vocab_size, bias=False)
        init_vit(self, init_std)
        nn.init.trunc_normal_(self.cls, std=init_std)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.embed_dim = width

    def vision_tokens(self, out: Outputs) -> Tensor:
        """(B, (image_size / patch_size)^2, width): all of the encoder's."""
        tokens: Tensor = self.vision(out.stream("image").data)
        return tokens

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, queries, width): those that the decoder sees."""
        return self.caption_norm(self.caption_pool(out.vision_tokens))

    def image_feat(self, out: Outputs) -> Tensor:
        tokens = out.image_tokens if self.config.pooling == "cascade" else out.vision_tokens
        return F.normalize(self.contrast_norm(self.contrast_pool(tokens))[:, 0].float(), dim=-1)

    def unimodal_hidden(self, out: Outputs) -> Tensor:
        """(B, L + 1, width): the text's tokens, each of which sees those before it, and the one that sees them all."""
        text = out.stream("text")
        assert text.mask is not None
        x = torch.cat([self.words(text.data), self.cls.expand(len(text), -1, -1)], dim=1)
        seen = F.pad(text.mask, (0, 1), value=True)
        mask = causal_mask(x.shape[1], x.device) & seen[:, None, None, :]
        for layer in self.unimodal:
            x = layer(x, mask)
        return x

    def text_feat(self, out: Outputs) -> Tensor:
        return F.normalize(self.cls_norm(out.unimodal_hidden[:, -1]).float(), dim=-1)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        x = out.unimodal_hidden[:, :-1]
        mask = causal_mask(x.shape[1], x.device)  # padding is on the right, where nothing sees it
        for layer in self.multimodal:
            x = layer(x, mask, out.image_tokens)
        return self.text_norm(x)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.vision.fitted(state, "vision.positions")

    @torch.no_grad()
    def constrain(self) -> None:
        self.temp.clamp_(min=MIN_TEMP)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        return TextRules(c.start, c.end, [c.start] if c.start != c.end else [], c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Cache:
        cache = Cache(room)
        for layer in self.multimodal:
            assert isinstance(layer, DecoderLayer)
            assert layer.cross is not None
            k, v = layer.cross.keys_values(images)
            cache.image.append((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)))
        return cache

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        x = self.words.words(ids) + cache.positions(self.words.positions.weight, ids.shape[1])
        images = [None] * len(self.unimodal) + cache.image
        for i, (layer, image) in enumerate(zip([*self.unimodal, *self.multimodal], images, strict=True)):
            x = layer.step(x, cache, i, image)
        cache.advance(ids.shape[1])
        return self.text_norm(x)
