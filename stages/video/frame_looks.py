"""Measures of a video's frames on a time grid, made once, from which the signals of all of its clips follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from pydantic import Field

from vlpipe.stages.video.frame_measures import (
    FrameFacts,
    Picture,
    colour_change,
    frame_facts,
    frame_hash,
    motion,
)

FPS, SIDE = 4.0, 96  # our choice

# Type of the heavy column `frame_looks`: one entry per frame of the grid, by time, in seconds. Fields: those of `Look`.
LOOKS = pa.list_(
    pa.struct(
        [
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("dark", pa.float64()),
            ("sharpness", pa.float64()),
            ("text", pa.float64()),
            ("moved", pa.float64()),
            ("changed", pa.float64()),
            ("hash", pa.string()),
        ]
    )
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Frames at multiples of 1 / fps seconds, with `side` pixels on the shorter side."""

    fps: Annotated[float, Field(gt=0)] = FPS
    side: Annotated[int, Field(ge=32)] = SIDE


class Look(NamedTuple):
    """Measures of one frame. moved, changed: since the previous frame of the grid; None if that was not read."""

    dark: float  # fraction of black pixels
    sharpness: float  # variance of the Laplacian
    text: float  # fraction of the frame that looks like text
    moved: float | None  # mean absolute change per pixel, in grey levels
    changed: float | None  # change of the colour histogram, 0 to 1
    hash: str | None  # pHash; None if the frame has too little texture


class Looker:
    """Measures the frames of one video, which come in the order of its grid. `looks`: number on the grid -> measures."""

    def __init__(self) -> None:
        self.looks: dict[int, Look] = {}
        self._before: tuple[int, FrameFacts] | None = None

    def see(self, k: int, picture: Picture) -> None:
        """Measures frame `k` of the grid, (H, W, 3) uint8."""
        facts, before = frame_facts(picture), self._before
        near = before[1] if before and before[0] == k - 1 else None
        self.looks[k] = Look(
            facts.dark,
            facts.sharpness,
            facts.text,
            motion(near, facts) if near else None,
            colour_change(near, facts) if near else None,
            frame_hash(picture),
        )
        self._before = k, facts

    def entry(self, k: int, fps: float) -> dict[str, Any]:
        """Returns the measures of frame `k` as an entry of a list in the column LOOKS."""
        return {"start_s": k / fps, "end_s": (k + 1) / fps, **self.looks[k]._asdict()}


def looks_of(entries: Sequence[Mapping[str, Any]]) -> list[Look]:
    """Returns the measures of one row of the column LOOKS, by time."""
    return [Look(**{name: entry[name] for name in Look._fields}) for entry in entries]
