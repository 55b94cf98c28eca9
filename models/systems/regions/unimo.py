"""UNIMO: one transformer over texts, images, and pairs of both. Li et al. 2021, https://arxiv.org/abs/2012.15409."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, PostNormLayer, Transform, init_bert
from vlpipe.models.blocks.regions import SumRegionEmbed, seen_regions
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, class_head


class Unimo(FillsRegions):
    """Defaults are those of UNIMO-base. A batch has text, regions, or both; the whole image comes before its regions.

    The stream `regions` has features of `feat_dim` values and extra["box"]. If the text has target["prefix"], its later
    tokens see those before them alone, and neither the prefix nor the image sees them. `variants` and `retrieved` are
    `language.variants:Variants`, read by the contrast alone.
    """

    # 2: cosines in float32, also under autocast
    VERSION = 2

    STREAMS = {  # noqa: RUF012
        "text": "text:Text",
        "regions": "regions:Regions",
        "variants": "language.variants:Variants",
        "retrieved": "language.variants:Variants",
    }
    REGION_KINDS = ("feat", "obj")

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
        contrast: bool = True,
    ) -> None:
        """contrast: False for a model that reads no variants."""
        super().__init__()
        self.words = TextEmbed(vocab_size, max_text_length, width, dropout=dropout)
        self.regions = SumRegionEmbed(feat_dim, width, dropout, whole="unmasked")
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        self.feat_head = class_head(width, feat_dim)
        self.obj_head = class_head(width, num_objects)
        self.score = nn.Linear(2 * width, 1) if contrast else None
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        specs["regions"]["feat_dim"] = self.config.feat_dim
        if self.score is None:
            return {name: specs[name] for name in ("text", "regions")}
        for name in ("variants", "retrieved"):
            specs[name]["max_positions"] = self.config.max_text_length
        return specs

    def lacks(self, capability: type) -> bool:
        return hasattr(capability, "variant_scores") and self.score is None

    def _encoded(self, words: Stream | None, image: Stream | None) -> tuple[Tensor | None, Tensor | None]:
        """Hidden states of words (B, L, width), and of the whole image and regions (B, 1 + R, width)."""
        parts, seen, length = [], [], 0
        if words is not None:
            assert words.mask is not None
            parts, seen, length = [self.words(words.data)], [words.mask], words.data.shape[1]
        if image is not None:
            parts.append(self.regions(image))
            seen.append(seen_regions(image, whole=True))
        x, mask = torch.cat(parts, 1), torch.cat(seen, 1)[:, None, None, :]
        if words is not None and "prefix" in words.target:
            mask = mask & prefix_mask(words.target["prefix"], length, x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return (x[:, :length] if words is not None else None), (x[:, length:] if image is not None else None)

    def both(self, out: Outputs) -> tuple[Tensor | None, Tensor | None]:
        streams = out.batch.streams
        text, image = (out.stream(name) if name in streams else None for name in ("text", "regions"))
        return self._encoded(text, image)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        words, image = out.both
        found = {} if words is None else {"text": words}
        return found if image is None else {**found, "regions": image[:, 1:]}

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """States (B, L, width) that predict the next tokens, with or without an image: extra["prompt"] (B,) tokens
        of the text are given, by default the first; the others see those before them alone.
        """
        text, streams = out.stream("text"), out.batch.streams
        given = text.extra.get("prompt", torch.ones_like(text.data[:, 0]))
        words = replace(text, target={**text.target, "prefix": given})
        found = self._encoded(words, out.stream("regions") if "regions" in streams else None)[0]
        assert found is not None
        return found

    def predict(self, hidden: Tensor) -> Tensor:
        return self.predict_words(hidden)

    def image_feat(self, out: Outputs) -> Tensor:
        """The whole image's state, without a text: (B, width), unit norm."""
        image = self._encoded(None, out.stream("regions"))[1]
        assert image is not None
        return F.normalize(image[:, 0].float(), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        """The start token's state, without an image: (B, width), unit norm."""
        return self._text_feat(out.stream("text"))

    def _text_feat(self, stream: Stream) -> Tensor:
        words = self._encoded(stream, None)[0]
        assert words is not None
        return F.normalize(words[:, 0].float(), dim=-1)

    def variant_scores(self, out: Outputs) -> Tensor:
        """(B, K): a linear map of the states of start token and whole image, encoded together."""
        assert self.score is not None
        stream, image = out.stream("variants"), out.stream("regions")
        batch, num, _ = stream.data.shape
        rows = torch.arange(batch, device=stream.data.device).repeat_interleave(num)
        words, regions = self._encoded(flat_texts(stream), image.rows(rows))
        assert words is not None
        assert regions is not None
        return self.score(torch.cat([words[:, 0], regions[:, 0]], 1)).view(batch, num)

    def retrieved_cosines(self, out: Outputs) -> Tensor:
        """(B, B, R): of image i, and text k that was retrieved for sample j."""
        stream = out.stream("retrieved")
        texts = self._text_feat(flat_texts(stream)).unflatten(0, stream.data.shape[:2])
        with torch.autocast(texts.device.type, enabled=False):  # fp32, as for other contrasts
            return torch.einsum("ie,jre->ijr", out.image_feat.float(), texts.float())


def flat_texts(stream: Stream) -> Stream:
    """Returns texts (B, K, L) as (B x K, L). Those that are not there have one token, for attention to be over something."""
    tokens = stream.extra["tokens"].flatten(0, 1)
    return Stream(
        stream.data.flatten(0, 1),
        tokens | F.pad(tokens[:, :1].new_ones(len(tokens), 1), (0, tokens.shape[1] - 1)),
    )


def prefix_mask(prefix: Tensor, length: int, total: int) -> Tensor:
    """Returns (B, 1, total, total) bool, query by key: all see given words and the image, later words the generated ones.

    prefix: (B,), the number of given words. length: of the words, which come first.
    """
    place = torch.arange(total, device=prefix.device)
    generated = (place[None] >= prefix[:, None]) & (place < length)[None]
    later = (place[:, None] >= place[None]) & (place < length)[:, None]
    return (~generated[:, None, :] | later[None])[:, None]
