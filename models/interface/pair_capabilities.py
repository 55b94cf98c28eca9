"""What a model of pairs with several parts can do, as Protocols like those of `capabilities`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class TellsPolluted(Protocol):
    """Tells which part of a caption, tags and image is another image's: logits (B, 3) of [none, tags, caption]."""

    def polluted(self, out: Outputs) -> Tensor: ...
