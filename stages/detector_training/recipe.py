"""What a detector's training run is, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlpipe.pipeline.files import File, Weights
from vlpipe.stages.train.recipe import Optimisation


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe(Optimisation):
    """The model, what it starts from, its classes and its losses, beside how it is optimised."""

    model: dict[str, Any] | None = (
        None  # parameters of DetectorConfig; numbers of classes follow from the data
    )
    init: Weights | None = None  # or start from this detector, with its words
    init_resnet: File | None = (
        None  # or start a new one from a ResNet of torchvision's names (.pth, .safetensors)
    )
    max_classes: int = 1600  # the most frequent labels; Visual Genome's detectors have 1600 and 400
    max_attributes: int = 400
    loss_weights: dict[str, float] = field(default_factory=dict)  # 1 where not given
    freeze: list[str] = field(default_factory=list)  # beginnings of names; detectron2: stem and layer1
    flip: bool = True  # mirror half of the images
