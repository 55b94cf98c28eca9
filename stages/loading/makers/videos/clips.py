"""Clips of a video row: which ones a sample has. All makers of a video's streams draw the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.rows import Row

CLIPS = "clips"  # column of video rows: list<struct<start_s, end_s, text, candidates>>


@dataclass(frozen=True, kw_only=True)
class OfVideo(Maker):
    """Base of makers of video rows: each sample has `pairs` clips of the video, drawn with replacement.

    neighbours: clips that follow each other instead, the first of which is clip 0, `pairs`, 2 x `pairs`, ...; after the last
    clip of the video comes its first one (UniVL's code, 3 clips). Streams of one sample must have the same `pairs` and
    `neighbours`.
    """

    SHARES: ClassVar[str] = CLIPS

    pairs: int = 64  # n_pair of HowTo100M's code
    neighbours: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"streams: pairs must be at least 1, got {self.pairs}")

    def drawn(self, row: Row, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Returns the clips; the first draw of a maker. Raises VlpipeError for a row without any."""
        clips = row.columns[CLIPS].values
        if clips is None or not len(clips):
            raise VlpipeError(
                f"training: row {row.id} has no clips; add a step before training that rejects it"
            )
        if self.neighbours:
            first = self.pairs * int(rng.integers(-(-len(clips) // self.pairs)))
            chosen = [(first + k) % len(clips) for k in range(self.pairs)]
        else:
            chosen = rng.integers(len(clips), size=self.pairs).tolist()
        found: list[dict[str, Any]] = [clips[k].as_py() for k in chosen]
        return found
