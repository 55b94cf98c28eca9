"""The configuration of a detector's training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlpipe.pipeline.files import File, Weights
from vlpipe.stages.train.recipe import Optimisation


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe(Optimisation):
    """Model, initial weights, classes and losses of a detector, in addition to the fields of `Optimisation`."""

    model: dict[str, Any] | None = (
        None  # parameters of DetectorConfig; the numbers of classes and attributes come from the data
    )
    init: Weights | None = None  # start from this detector, with its vocabulary
    init_resnet: File | None = (
        None  # or initialise a new one from a ResNet with torchvision's parameter names (.pth, .safetensors)
    )
    max_classes: int = (
        1600  # keeps the most frequent labels; Visual Genome detectors have 1600 classes, 400 attributes
    )
    max_attributes: int = 400
    loss_weights: dict[str, float] = field(default_factory=dict)  # 1 where not given
    freeze: list[str] = field(
        default_factory=list
    )  # prefixes of parameter names; detectron2 freezes stem and layer1
    flip: bool = True  # mirror half of the images
    window_bytes: int = (
        1 << 30  # per worker, max size of a shuffle window; the one before is in memory while it is read
    )

    def _checks(self) -> list[tuple[bool, str]]:
        return [
            *super()._checks(),
            (self.window_bytes < 1, f"window_bytes must be at least 1, got {self.window_bytes}"),
        ]
