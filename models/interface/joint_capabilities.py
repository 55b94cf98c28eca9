"""What a model of images and texts can do for heads on top of it, as a Protocol like those of `capabilities`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class PoolsJointly(Protocol):
    """Pools a text and its image into one vector: (B, D).

    Of a model with `fused` (the capability `Fuses`) and without this method, heads take the first hidden state of the text
    that has seen the image, [CLS], after the model's `pooler` if it has one. joint_width: D, of models for which it is not
    their `width` or `text_width`.
    """

    def pooled(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class Chooses(Protocol):
    """Chooses one of several texts: scores (B, K), -inf for those that a row does not have."""

    def choice_scores(self, out: Outputs) -> Tensor: ...
