"""Feature vectors of the windows of clips: S3D's, or those of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import ROW, TARGET, Item, Maker, note
from vlpipe.stages.loading.makers.videos.clips import CLIPS, OfVideo
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

Vectors = npt.NDArray[np.float32]
RATES = (("feat_2d", 1.0), ("feat_3d", 1.5))  # column -> rows per second
LENGTHS = "lengths"  # key of an item: number of windows of each clip


@dataclass(frozen=True, kw_only=True)
class Windows(Maker):
    """Vectors (B, 1, T, D) of a clip's windows, with mask (B, 1, T). COLUMNS: one, of windows or of one vector per row.

    max_windows: of a longer clip, a random run of so many. Raises VlpipeError for a clip without windows.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("s3d",)

    max_windows: int = 64

    def __post_init__(self) -> None:
        if self.max_windows < 1:
            raise ValueError(f"streams: max_windows must be at least 1, got {self.max_windows}")

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        found = vectors(row.columns[self.COLUMNS[0]], self.COLUMNS[0], row.id)
        return item([run(found, self.max_windows, rng)], row)

    def collate(self, items: Sequence[Item]) -> Stream:
        return collated(items)


@dataclass(frozen=True, kw_only=True)
class S3dWindows(Windows):
    """`Windows` of the column `s3d`."""


@dataclass(frozen=True, kw_only=True)
class FrameWindows(Windows):
    """`Windows` of the column `frame_feats`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("frame_feats",)


@dataclass(frozen=True, kw_only=True)
class ContextWindows(Windows):
    """`Windows` of the column `context_feats`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("context_feats",)


@dataclass(frozen=True, kw_only=True)
class Pooled2d3d(Windows):
    """`Windows` of the column `feat_2d3d`, HowTo100M's features: one per clip."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("feat_2d3d",)


@dataclass(frozen=True, kw_only=True)
class VideoWindows(OfVideo):
    """Vectors (B, N, T, D) of the windows of N = `pairs` clips of a video, with mask (B, N, T).

    A clip has the windows with their centre in it; if there are none, the one with the nearest centre. max_windows: as in
    `Windows`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("s3d", CLIPS)

    max_windows: int = 64

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        clips, column = self.drawn(row, rng), self.COLUMNS[0]
        found = vectors(row.columns[column], column, row.id)
        times = [row.columns[column].values.field(name).to_numpy() for name in ("start_s", "end_s")]
        centres = (times[0].astype(np.float64) + times[1]) / 2
        return item([run(found[within(centres, clip)], self.max_windows, rng) for clip in clips], row)

    def collate(self, items: Sequence[Item]) -> Stream:
        return collated(items)


@dataclass(frozen=True, kw_only=True)
class VideoFrameWindows(VideoWindows):
    """`VideoWindows` of the column `frame_feats`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("frame_feats", CLIPS)


@dataclass(frozen=True, kw_only=True)
class Video2d3d(OfVideo):
    """HowTo100M's features (B, N, 1, D) of N = `pairs` clips of a video, from `feat_2d` and `feat_3d`, 1 and 1.5 per second.

    Of each, the greatest value per channel of rows int(start x rate) to int(end x rate), both included, divided by its
    norm; the two side by side. A clip after the last row has that row.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("feat_2d", "feat_3d", CLIPS)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        clips = self.drawn(row, rng)
        sides = [(_rows(row.columns[name], name, row.id), rate) for name, rate in RATES]
        found = [
            np.concatenate([_greatest(rows, rate, clip) for rows, rate in sides])[None] for clip in clips
        ]
        return item(found, row)

    def collate(self, items: Sequence[Item]) -> Stream:
        return collated(items)


def _rows(value: Any, column: str, row_id: str) -> Vectors:
    values = value.values
    if values is None or not len(values):
        raise VlpipeError(
            f"streams: row {row_id} has no {column}; add a step before training that rejects it"
        )
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1).astype(np.float32)


def _greatest(rows: Vectors, rate: float, clip: dict[str, Any]) -> Vectors:
    first = min(int(clip["start_s"] * rate), len(rows) - 1)
    found = rows[first : int(clip["end_s"] * rate) + 1].max(axis=0)
    unit: Vectors = found / max(float(np.linalg.norm(found)), 1e-12)
    return unit


def vectors(value: Any, column: str, row_id: str) -> Vectors:
    """Returns the vectors (T, D) of a value: windows with a field `feat`, or one vector. VlpipeError if there are none."""
    values = value.values
    if values is None or not len(values):
        raise VlpipeError(
            f"streams: row {row_id} has no {column}; add a step before training that rejects it"
        )
    if not pa.types.is_struct(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), np.float32)[None]
    feats = values.field("feat")
    flat = feats.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), -1).astype(np.float32)


def within(centres: npt.NDArray[np.float64], clip: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Returns the indices of the centres in [start_s, end_s) of the clip; if none, of the nearest to its middle."""
    inside = np.flatnonzero((centres >= clip["start_s"]) & (centres < clip["end_s"]))
    return inside if len(inside) else np.abs(centres - (clip["start_s"] + clip["end_s"]) / 2).argmin()[None]


def run(found: Vectors, num: int, rng: np.random.Generator) -> Vectors:
    """Returns a random run of `num` of the vectors, or all if they are not more."""
    if len(found) <= num:
        return found
    start = int(rng.integers(len(found) - num, endpoint=True))
    return found[start : start + num]


def item(clips: Sequence[Vectors], row: Row) -> Item:
    """Returns the item of N clips (T_i, D): `data` (N, T, D), padded with 0, and `lengths` (N,)."""
    lengths = np.array([len(clip) for clip in clips])
    data = np.zeros((len(clips), lengths.max(), clips[0].shape[1]), np.float32)
    for k, clip in enumerate(clips):
        data[k, : len(clip)] = clip
    return {"data": data, LENGTHS: lengths, ROW: note(row.image_id)}


def collated(items: Sequence[Item]) -> Stream:
    """Returns the stream of `item`s, all of N clips: data (B, N, T, D) and mask (B, N, T).

    After `mask_frames`, target["masked"] (B, N, T) and target["feat"] (B, N, T, D), the features before it.
    """
    import torch

    from vlpipe.models.interface.batch import Stream

    longest = max(one["data"].shape[1] for one in items)
    num, _, dim = items[0]["data"].shape
    data = np.zeros((len(items), num, longest, dim), np.float32)
    for k, one in enumerate(items):
        data[k, :, : one["data"].shape[1]] = one["data"]
    lengths = torch.from_numpy(np.stack([one[LENGTHS] for one in items]))
    mask = torch.arange(longest) < lengths[:, :, None]
    if f"{TARGET}masked" not in items[0]:
        return Stream(torch.from_numpy(data), mask)
    feats, masked = np.zeros_like(data), np.zeros(data.shape[:3], np.bool_)
    for k, one in enumerate(items):
        feats[k, :, : one["data"].shape[1]] = one[f"{TARGET}feat"]
        masked[k, :, : one["data"].shape[1]] = one[f"{TARGET}masked"]
    places = {"masked": torch.from_numpy(np.flatnonzero(masked))}
    target = {"feat": torch.from_numpy(feats), "masked": torch.from_numpy(masked)}
    return Stream(torch.from_numpy(data), mask, target=target, places=places)
