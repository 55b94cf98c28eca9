"""What a model of texts alone can do, as Protocols like those of `capabilities`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class ClassifiesTexts(Protocol):
    """Tells the class of a text, or of two texts: logits (B, classes); with one class, a score (B, 1)."""

    def text_logits(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class FindsSpans(Protocol):
    """Finds a span of a text: scores (B, L, 2) of each token as its first and as its last; position 0 twice is "none"."""

    def span_logits(self, out: Outputs) -> Tensor: ...
