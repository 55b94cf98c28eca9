"""VL-BERT: a BERT whose every element has a word and a visual feature. Su et al. 2019, https://arxiv.org/abs/1908.08530."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, NORM_EPS, PostNormLayer, Transform, init_bert
from vlpipe.models.blocks.regions import seen_regions
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.detection.trained_regions import RegionCnn
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import FillsRegions, class_head

WAVES, SCALE = 1000.0, 100.0  # of the embedding of boxes; relation networks' and the released code's


class VlBert(FillsRegions):
    """Defaults are those of VL-BERT-base. Reads `[CLS] words [SEP]`, the whole image, its regions, [END].

    An element is the norm of the sum of a word's embedding ([IMG] for images, a mask for hidden regions), of a normed visual
    feature, a position (the same for all regions) and a segment. The visual feature of a region is a layer of its feature
    beside sines and cosines of its box; that of a word is the whole image's. visual_scale: the weight that the norms of
    visual features start from.

    cnn: parameters of `RegionCnn`, which makes the features of regions and whole image from the pixels
    (`pixel_regions:PixelRegions` of `image_size`), and is trained with the rest; masked regions are hidden in the pixels, by
    `image_text.hide_regions:HideRegions`. None: the stream's features, of `feat_dim` values, are used. That of a hidden
    region is then a learned one, and that of the whole image the mean of those that are not hidden: an approximation, as a
    detector has looked at the unmasked image, so that the other features may tell of a hidden region.

    `num_objects` counts the background. The auxiliary loss on texts without images is left out.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        num_objects: int = 1601,
        cnn: dict[str, Any] | None = None,
        image_size: int = 600,
        place_dim: int = 2048,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        visual_scale: float = 0.0,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if place_dim % 8:
            raise ValueError(f"VlBert: place_dim must be a multiple of 8, got {place_dim}")
        self.dropout = dropout
        self.words = TextEmbed(vocab_size, max_text_length + 2, width, num_types=3, dropout=dropout)
        self.special = nn.Embedding(3, width)  # [IMG], the mask of a region, [END]
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        self.obj_head = class_head(width, num_objects)
        feat_dim = feat_dim if cnn is None else 32 * cnn.get("width", 64)
        self.visual = nn.Linear(place_dim + feat_dim, width)
        self.visual_norms = nn.ModuleList(
            nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2)
        )  # words, regions
        self.hidden_feat = nn.Parameter(torch.zeros(feat_dim)) if cnn is None else None
        init_bert(self, init_std)
        for norm in self.visual_norms:
            nn.init.constant_(norm.weight, visual_scale)  # type: ignore[arg-type]
        self.cnn = None if cnn is None else RegionCnn(**cnn)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs, c = super().streams(), self.config
        if c.cnn is None:
            specs["regions"] |= {"feat_dim": c.feat_dim, "probs": True}
        else:
            specs["regions"] = {"use": "pixel_regions:PixelRegions", "size": c.image_size, "probs": True}
        return specs

    def _features(self, image: Stream) -> Tensor:
        """(B, 1 + R, feat_dim): of the whole image, then of the regions."""
        hidden = self._hidden(image)
        if self.cnn is None:
            assert self.hidden_feat is not None
            shown = (seen_regions(image) & ~hidden)[..., None].to(image.data)
            num = shown.sum(1, keepdim=True)
            mean = (image.data * shown).sum(1, keepdim=True) / num.clamp(min=1)
            mean = torch.where(num > 0, mean, self.hidden_feat)
            return torch.cat([mean, torch.where(hidden[..., None], self.hidden_feat, image.data)], dim=1)
        if "pixels" not in image.extra:
            raise ValueError(
                "VlBert: the stream 'regions' has no pixels; its maker is pixel_regions:PixelRegions"
            )
        return self.cnn(image.extra["pixels"], with_whole(image.extra["box"]))

    @staticmethod
    def _hidden(image: Stream) -> Tensor:
        none = torch.zeros(image.extra["box"].shape[:2], dtype=torch.bool, device=image.data.device)
        return image.extra.get("hidden", image.target.get("masked", none))

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        table = self.words
        assert text.mask is not None
        assert table.types is not None
        assert table.norm is not None
        length, seen = text.data.shape[1], seen_regions(image)
        if length > self.config.max_text_length:
            raise ValueError(
                f"text: {length} tokens, but the model has {self.config.max_text_length} positions"
            )
        features = torch.cat(
            [self._features(image), places(with_whole(image.extra["box"]), self.config.place_dim)], -1
        )
        visual = F.relu(self.visual(F.dropout(features, self.dropout, self.training)))
        of_words, of_regions = self.visual_norms[0](visual[:, :1]), self.visual_norms[1](visual)
        lengths = text.mask.sum(1)
        after = table.positions(lengths[:, None])  # (B, 1, width), of all regions
        words = table.words(text.data) + of_words + table.positions.weight[:length] + table.types.weight[0]
        kinds = self.special(F.pad(self._hidden(image).long(), (1, 0)))
        regions = kinds + of_regions + after + table.types.weight[2]
        end = (
            self.special.weight[2] + of_words + table.positions(lengths[:, None] + 1) + table.types.weight[2]
        )
        x = table.norm(torch.cat([words, regions, end], dim=1))
        x = F.dropout(x, self.dropout, self.training)
        one = seen.new_ones(len(seen), 1)
        keys = torch.cat([text.mask, one, seen, one], dim=1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        return {"text": x[:, :length], "regions": x[:, length + 1 : -1]}


def with_whole(boxes: Tensor) -> Tensor:
    """(B, R, 4) -> (B, 1 + R, 4): the whole image first."""
    whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(boxes), 1, 4)
    return torch.cat([whole, boxes], dim=1)


def places(boxes: Tensor, dim: int) -> Tensor:
    """(..., 4) -> (..., dim): sines, then cosines, of each coordinate at dim / 8 wavelengths."""
    waves = WAVES ** (torch.arange(dim // 8, device=boxes.device) / (dim // 8))
    at = SCALE * boxes[..., None] / waves
    return torch.cat([at.sin(), at.cos()], dim=-1).flatten(-2)
