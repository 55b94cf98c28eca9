"""What a model of videos and their narration can do, as Protocols like those of `capabilities`.

B rows of N clips each, with K candidate texts per clip; E the width of the shared space. Rows of a clip each have N = 1.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class ScoresNarration(Protocol):
    """Embeds clips and what is said: clips (B, N, E), texts (B, N, K, E), whose dot product is their score."""

    def clip_feat(self, out: Outputs) -> Tensor: ...
    def narration_feat(self, out: Outputs) -> Tensor: ...
