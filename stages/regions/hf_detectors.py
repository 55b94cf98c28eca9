"""Region features by a transformers detector (DETR, RT-DETR, Deformable DETR, YOLOS), in the columns of all region stages.

`feat` is the decoder's last hidden state of the region's query, neither padded nor projected: 256-d for DETR-R50 and
RT-DETR. A model that expects 2048-d region features cannot use them; a model trained on them can.
Carion et al. 2020, https://arxiv.org/abs/2005.12872.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.region_rows import (
    Arrays,
    region_columns,
    regions_array,
    tags_of,
)
from vlpipe.stages.common.scores import decoded, device, load_model, pretrained, with_columns
from vlpipe.stages.regions.base import RegionStage, Share

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class HFRegionFeatures(RegionStage):
    """Adds the heavy column `regions`, and `region_tags` and `regions_weights`; there are no attributes (`attr` is -1).

    model: a folder or hub id for AutoModelForObjectDetection, with its image processor (the Pillow backend is used).
    feat_dim, num_classes: the model's `d_model` (`hidden_size`) and number of labels; defaults: DETR on COCO.
    `prob`: for models with a "no object" class (DETR, YOLOS), the softmax, with "no object" last; for independent classes
    (RT-DETR, Deformable DETR), the sigmoids, then 1 - their max.
    min_regions, max_regions, confidence: queries whose likeliest class has a probability of at least `confidence` are kept,
    best first, but not fewer than min_regions (or all, if there are fewer) nor more than max_regions.
    tag_confidence: regions below it give no tag.
    """

    NAME: ClassVar[str] = "features.regions_hf:HFRegionFeatures"

    model: Weights
    feat_dim: Annotated[int, Field(ge=1)] = 256
    num_classes: Annotated[int, Field(ge=1)] = 91
    min_regions: Annotated[int, Field(ge=1)] = 10
    tag_confidence: Share = 0.5

    @contextmanager
    def open(self) -> Iterator[Work]:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        from vlpipe.stages.common.detector import digest_of

        model = load_model(AutoModelForObjectDetection, self.model)
        config = model.config
        width = getattr(config, "d_model", None) or config.hidden_size
        self.check_sizes(feat_dim=width, num_classes=config.num_labels)
        processor = pretrained(AutoImageProcessor, self.model.path, backend="pil")
        names = [model.config.id2label[k] for k in range(self.num_classes)]
        digest = digest_of(model, processor.to_json_string())

        def work(table: pa.Table) -> Out:
            rejects: list[Reject] = []
            found = [self._detect(model, processor, image) for _, image in decoded(table, rejects)]
            tags = [tags_of(one, names, self.tag_confidence) for one in found]
            column = regions_array(found, self.feat_dim, self.num_classes + 1)
            kept = with_columns(without(table, rejects), **region_columns(column, tags, digest))
            return Out(kept, rejects)

        yield work

    def _detect(self, model: Any, processor: Any, image: Image.Image) -> Arrays:
        """Returns the regions of one image. Images are processed one at a time, since a batch would pad them."""
        import torch

        inputs = processor(images=image, return_tensors="pt").to(device())
        with torch.inference_mode():
            out = model(**inputs)
        prob = class_probs(out.logits[0].float(), self.num_classes)
        conf, obj = prob[:, :-1].max(1)
        best = conf.argsort(descending=True, stable=True)
        num = min(max(int((conf >= self.confidence).sum()), self.min_regions), self.max_regions, len(best))
        kept = best[:num]
        centre, half = out.pred_boxes[0, kept, :2].float(), out.pred_boxes[0, kept, 2:].float() / 2
        box = torch.cat([centre - half, centre + half], 1).clamp(0, 1).cpu().numpy()
        return {
            "feat": out.last_hidden_state[0, kept].cpu().float().numpy(),
            "box": box * np.array([image.width, image.height] * 2, np.float32),
            "prob": prob[kept].cpu().numpy(),
            "obj": obj[kept].cpu().numpy(),
            "obj_conf": conf[kept].cpu().numpy(),
            "attr": np.full(num, -1),
            "attr_conf": np.zeros(num),
        }


def class_probs(logits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Returns class probabilities (Q, C + 1) from logits (Q, C + 1) with "no object", or (Q, C) of independent classes.

    C: `num_classes`. VlpipeError for another width.
    """
    import torch

    if logits.shape[1] == num_classes + 1:
        return logits.softmax(1)
    if logits.shape[1] != num_classes:
        raise VlpipeError(
            f"the model gives {logits.shape[1]} logits for {num_classes} labels, wanted {num_classes}, or one more for "
            '"no object"; models with other outputs are not supported'
        )
    found = logits.sigmoid()
    return torch.cat([found, 1 - found.amax(1, keepdim=True)], 1)
