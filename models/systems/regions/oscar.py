"""Oscar and Oscar+: one BERT over a caption, the words of an image's object tags, and its regions.

Li et al. 2020, https://arxiv.org/abs/2004.06165; Oscar+ is VinVL's, Zhang et al. 2021, https://arxiv.org/abs/2101.00529.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, NORM_EPS, PostNormLayer, Transform, init_bert
from vlpipe.models.blocks.regions import seen_regions
from vlpipe.models.blocks.text import Pooler, TextEmbed
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pair_capabilities import TellsPolluted
from vlpipe.models.regions.base import RegionModel


class Oscar(RegionModel):
    """Defaults are those of Oscar-base.

    The stream `text` is `[CLS] caption [SEP] tags [SEP]` (`tags:CaptionAndTags`). The stream `regions` has features of
    `feat_dim` values and extra["box"], x1, y1, x2, y2 from 0 to 1; width and height of the box follow, and one matrix
    projects all. Regions have neither position nor type.
    contrast: classes of the contrastive loss on [CLS]. 2: [polluted, right]; 3 (Oscar+): [right, wrong tags, wrong caption].
    region_norm: a norm after the projection (`use_img_layernorm` of the released code). tags: False is a control in which
    the tags are hidden.
    """

    STREAMS = {"text": "tags:CaptionAndTags", "regions": "regions:Regions"}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 2048,
        contrast: int = 2,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        region_norm: bool = False,
        tags: bool = True,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if contrast not in (2, 3):
            raise ValueError(f"Oscar: contrast must be 2 or 3, got {contrast}")
        self.dropout = dropout
        self.words = TextEmbed(vocab_size, max_text_length, width, num_types=2, dropout=dropout)
        self.regions = nn.Linear(feat_dim + 6, width)
        self.region_norm = nn.LayerNorm(width, eps=NORM_EPS) if region_norm else None
        self.blocks = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.pooler = Pooler(width)
        self.contrast_head = nn.Linear(width, contrast)
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        init_bert(self, init_std)

    def lacks(self, capability: type) -> bool:
        return capability is TellsPolluted and self.config.contrast == 2

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.stream("regions")
        assert text.mask is not None
        segment = text.extra.get("segment")
        x = torch.cat([self.words(text.data, segment), self._regions(image)], dim=1)
        shown = text.mask
        if not self.config.tags and segment is not None:
            shown = shown & (segment == 0)
        keys = torch.cat([shown, seen_regions(image)], dim=1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, keys)
        length = text.data.shape[1]
        return {"text": x[:, :length], "regions": x[:, length:]}

    def _regions(self, image: Stream) -> Tensor:
        box = image.extra["box"]
        place = torch.cat([box, box[..., 2:] - box[..., :2]], dim=-1)  # x1, y1, x2, y2, w, h
        x = self.regions(torch.cat([image.data, place.to(image.data)], dim=-1))
        x = x if self.region_norm is None else self.region_norm(x)
        return F.dropout(x, self.dropout, self.training)

    def polluted(self, out: Outputs) -> Tensor:
        """Logits (B, 3) of [right, wrong tags, wrong caption]. Raises ValueError if `contrast` is 2."""
        if self.config.contrast == 2:
            raise ValueError("Oscar: this model tells right from polluted alone; set contrast: 3")
        return self.contrast_head(self.pooler(out.fused["text"]))

    def match(self, out: Outputs) -> Tensor:
        """Logits (B, 2) of [polluted, right]; of Oscar+'s three classes, the two wrong ones are one."""
        if self.config.contrast == 2:
            return self.contrast_head(self.pooler(out.fused["text"]))
        right, wrong = out.polluted[:, 0], out.polluted[:, 1:].logsumexp(1)
        return torch.stack([wrong, right], dim=1)
