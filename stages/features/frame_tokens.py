"""Video tokens from frame features (`features.frames`) in place of S3D's: where there are no weights of S3D that fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlpipe.stages.features.video_tokens import FitVideoTokens, VideoTokens


@dataclass(frozen=True, kw_only=True)
class FitFrameTokens(FitVideoTokens):
    """`FitVideoTokens` of the column `frame_feats`."""

    NAME: ClassVar[str] = "features.frame_tokens:FitFrameTokens"
    COLUMNS: ClassVar[tuple[str, str]] = ("frame_feats", "frame_weights")


@dataclass(frozen=True, kw_only=True)
class FrameTokens(VideoTokens):
    """`VideoTokens` of the column `frame_feats`."""

    NAME: ClassVar[str] = "features.frame_tokens:FrameTokens"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("frame_feats",)
    COLUMNS: ClassVar[tuple[str, str]] = ("frame_feats", "frame_weights")
