"""BLIP-2: a Q-Former between a frozen image encoder and a frozen language model, trained in two stages; here the first.

Li et al. 2023, https://arxiv.org/abs/2301.12597.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.cache import KeysValues
from vlpipe.models.blocks.frozen.qformer import QFormer, QFormerText
from vlpipe.models.blocks.frozen.vision_tower import VisionTower
from vlpipe.models.blocks.post_norm import INIT_STD, init_bert
from vlpipe.models.blocks.text import WordHead
from vlpipe.models.interface.capabilities import Generates, PredictsNext, TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Blip2(Model):
    """The first stage: queries are contrasted with texts (their best one counts), matched with them, and described.

    Defaults are the paper's: EVA-CLIP's ViT-g at 224 pixels without its last layer, BERT-base with 32 queries. Freeze
    `vision.patches.*` and `vision.encoder.blocks.*`; the norm of the image tokens is trained, as in the released code.
    clip_vision: the image encoder has CLIP's form. cross_every: every which layer reads the image. generates: False for
    released weights, which have no word head. dec, end: the tokens before and after a text that is written; label_smoothing:
    of that loss. The temperature is learned and has no bounds, as in the released code.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_tokens",), "text": ("text_feat",)}  # noqa: RUF012
    FORMATS = ("blip-2:Blip2ForImageTextRetrieval",)

    def __init__(
        self,
        *,
        vocab_size: int,
        pad: int,
        start: int,
        end: int,
        dec: int,
        unk: int | None = None,
        mask: int | None = None,
        image_size: int = 224,
        patch_size: int = 14,
        vision_width: int = 1408,
        vision_layers: int = 39,
        vision_heads: int = 16,
        vision_mlp: int = 6144,
        vision_norm_eps: float = 1e-6,
        clip_vision: bool = False,
        activation: str = "gelu",
        queries: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        cross_every: int = 2,
        mlp_width: int | None = None,
        max_text_length: int = 512,
        embed_dim: int = 256,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        generates: bool = True,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.vision, self.qformer = parts_of(self.config)
        sizes: dict[str, Any] = {"mlp_width": mlp_width, "dropout": dropout, "init_std": init_std}
        self.text = QFormerText(vocab_size, max_text_length, width, layers, **sizes)
        self.image_proj, self.text_proj = nn.Linear(width, embed_dim), nn.Linear(width, embed_dim)
        self.match_head = nn.Linear(width, 2)
        for head in (self.image_proj, self.text_proj, self.match_head):
            init_bert(head, init_std)
        self.word_head = WordHead(width, vocab_size, tied=self.text.words.words) if generates else None
        if self.word_head is not None:
            init_bert(self.word_head.dense, init_std)
            nn.init.zeros_(self.word_head.decoder.bias)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.embed_dim = embed_dim

    def lacks(self, capability: type) -> bool:
        return capability in (Generates, PredictsNext) and self.word_head is None

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, 1 + N, vision_width): of the image encoder."""
        tokens: Tensor = self.vision(out.stream("image").data)
        return tokens

    def queries(self, out: Outputs) -> tuple[Tensor, list[KeysValues]]:
        """The queries' outputs (B, Q, width), which have seen no text, and their keys and values in each layer."""
        return self.qformer(out.image_tokens)

    def image_feats(self, out: Outputs) -> Tensor:
        """(B, Q, embed_dim), unit norm: a text is as similar to an image as to the best of these."""
        return F.normalize(self.image_proj(out.queries[0]).float(), dim=-1)

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, embed_dim), unit norm: the mean of `image_feats`, for comparing images with one another."""
        return F.normalize(out.image_feats.mean(1), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        assert text.mask is not None
        hidden = self.text.alone(self.qformer, text.data, text.mask)
        return F.normalize(self.text_proj(hidden[:, 0]).float(), dim=-1)

    def match(self, out: Outputs) -> Tensor:
        """(B, 2) logits of [no match, match]: the mean of those of all queries."""
        image, rows = out.unpaired("image_tokens", "image")
        text = out.stream("text")
        assert text.mask is not None
        seen = self.text.matched(self.qformer, text.data, text.mask, image, rows)
        return self.match_head(seen).mean(1)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        ids = out.stream("text").data.clone()
        ids[:, 0] = self.config.dec
        return self.text.written(self.qformer, ids, out.queries[1])

    def predict(self, hidden: Tensor) -> Tensor:
        assert self.word_head is not None
        return self.word_head(hidden)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = {i for i in (c.pad, c.start, c.dec, c.unk, c.mask) if i is not None}
        return TextRules(c.dec, c.end, sorted(never), c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any:
        return self.text.start(self.qformer(images)[1], room, repeats)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        return self.text.step(self.qformer, ids, cache)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.vision.fitted(state, "vision.")


def parts_of(c: Any) -> tuple[VisionTower, QFormer]:
    """Returns the image encoder and the Q-Former of a config of either stage."""
    vision = VisionTower(
        c.image_size,
        c.patch_size,
        c.vision_width,
        c.vision_layers,
        c.vision_heads,
        clip=c.clip_vision,
        mlp_width=c.vision_mlp,
        activation=c.activation,
        norm_eps=c.vision_norm_eps,
    )
    qformer = QFormer(
        c.queries,
        c.width,
        c.layers,
        c.heads,
        c.vision_width,
        cross_every=c.cross_every,
        mlp_width=c.mlp_width,
        dropout=c.dropout,
        init_std=c.init_std,
    )
    return vision, qformer
