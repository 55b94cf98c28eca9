from __future__ import annotations

import torch

from tests.models.small_system import REGIONS, SMALL, WORDS, SmallSystem, streams
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.regions.soft_class import SoftRegionClass
from vlpipe.models.systems.regions.vl_bert import VlBert

CNN = {"depths": [1, 1, 1, 1], "width": 4, "pool_size": 2}


def with_pixels(rank: int) -> dict[str, Stream]:
    """Pictures, and probabilities of 7 classes."""
    regions, draw = streams(rank)["regions"], torch.Generator().manual_seed(rank)
    prob = torch.rand(4, 3, 7, generator=draw).softmax(-1)
    extra = {**regions.extra, "prob": prob, "pixels": torch.randn(4, 3, 32, 32, generator=draw)}
    return {"regions": Stream(regions.data, regions.mask, extra, regions.target)}


SYSTEM = SmallSystem(
    lambda: VlBert(
        vocab_size=WORDS,
        num_objects=REGIONS["num_objects"],
        cnn=CNN,
        image_size=32,
        place_dim=16,
        dropout=0.0,
        visual_scale=1.0,
        **SMALL,
    ),
    [MaskedLm(), SoftRegionClass()],
    ("regions", "text"),
    extra=with_pixels,
)
