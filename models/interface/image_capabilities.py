"""What a model of images alone can do, as Protocols like those of `capabilities`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class Classifies(Protocol):
    """Tells the class of an image: logits (B, classes)."""

    def logits(self, out: Outputs) -> Tensor: ...
