"""Pixel-BERT: one BERT over words and the places of a CNN's feature map, trained together.

Huang et al. 2020, https://arxiv.org/abs/2004.00849. No code was published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.patches import take
from vlpipe.models.blocks.post_norm import NORM_EPS, init_bert
from vlpipe.models.blocks.text import Pooler, WordHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.siamese.resnet import ImageResNet, Stem


class PixelBert(Model):
    """Defaults are those of ResNet-50 and BERT-base. Reads `[CLS] words [SEP] places`.

    extra["keep"] of the image chooses some of the places. The last map of the CNN is max-pooled 2x2 and projected; a learned
    vector, the same for all places, is added (the paper's semantic embedding), and no position, which a CNN knows by its
    borders. stem: see `ImageResNet`; with "large", a place has a side of 64 pixels. cnn_layers: blocks of each stage of the
    CNN. The projection of the map is our reading.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("pixel_embeds",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        image_size: int = 768,
        cnn_layers: Sequence[int] = (3, 4, 6, 3),
        cnn_width: int = 64,
        stem: Stem = "large",
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 40,
        dropout: float = 0.1,
        norm_eps: float = NORM_EPS,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.stride = 2 ** len(cnn_layers) * (1 if stem == "small" else 4)
        if image_size % self.stride:
            raise ValueError(f"model: image_size must be a multiple of {self.stride}, got {image_size}")
        self.bert = BertEncoder(
            vocab_size, max_text_length, width, layers, heads, norm_eps=norm_eps, dropout=dropout
        )
        self.word_head = WordHead(width, vocab_size, tied=self.bert.embed.words, norm_eps=norm_eps)
        self.pooler, self.match_head = Pooler(width), nn.Linear(width, 2)
        init_bert(self, init_std)
        self.cnn = ImageResNet(depths=cnn_layers, width=cnn_width, stem=stem)
        self.project = nn.Linear(self.cnn.width_out, width)
        self.semantic = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.project.weight, std=self.cnn.width_out**-0.5)
        nn.init.zeros_(self.project.bias)

    def pixel_embeds(self, out: Outputs) -> Tensor:
        """(B, places, width), row by row."""
        image = out.stream("image")
        places = F.max_pool2d(self.cnn.maps(image.data), 2).flatten(2).transpose(1, 2)
        if "keep" in image.extra:
            places = take(places, image.extra["keep"])
        return self.project(places) + self.semantic.to(places.dtype)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of the words (B, L, width) and of the places (B, places, width)."""
        text = out.stream("text")
        pixels, rows = out.unpaired("pixel_embeds", "image")
        pixels = pixels if rows is None else pixels[rows]
        x = torch.cat([self.bert.embed(text.data), pixels], dim=1)
        assert text.mask is not None
        keys = torch.cat([text.mask, text.mask.new_ones(pixels.shape[:2])], dim=1)[:, None, None, :]
        for block in self.bert.blocks:
            x = block(x, keys)
        length = text.data.shape[1]
        return {"text": x[:, :length], "image": x[:, length:]}

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"]

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def match(self, out: Outputs) -> Tensor:
        return self.match_head(self.pooler(out.fused["text"]))
