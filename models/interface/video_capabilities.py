"""What a model of videos and their narration can do, as Protocols like those of `capabilities`.

B rows of N clips each, with K candidate texts per clip; E the width of the shared space. Rows of a clip each have N = 1.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.capabilities import Generates
from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class ScoresNarration(Protocol):
    """Embeds clips and what is said: clips (B, N, E), texts (B, N, K, E), whose dot product is their score."""

    def clip_feat(self, out: Outputs) -> Tensor: ...
    def narration_feat(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class PredictsFrames(Protocol):
    """Predicts the features of masked windows: (M, T, D) of M clips, and of features (B, N, T, D) what they are compared
    with, (M, T, D).
    """

    def frame_prediction(self, out: Outputs) -> Tensor: ...
    def true_frames(self, feats: Tensor) -> Tensor: ...


@runtime_checkable
class ScoresPairs(Protocol):
    """Scores a text and a clip that it reads together: (B,)."""

    def pair_score(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EncodesWindows(Protocol):
    """Encodes each window with those around it: states (M, T, width) of M clips; `width` is in its config."""

    config: Any

    def video_tokens(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class DescribesClips(Generates, Protocol):
    """Writes texts about clips: what `start_text` reads of each clip and the text that is said in it, (M, N, D)."""

    def clip_context(self, out: Outputs) -> Tensor: ...
