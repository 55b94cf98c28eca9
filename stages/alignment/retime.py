"""Re-times cues: narration may lag behind or run ahead of the video, so each cue is shifted to where it matches best.

The idea is TAN's (Han et al., 2022, https://arxiv.org/abs/2204.02968), here with any joint embedding space instead of its
network. A cue keeps its duration; shifts are searched on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import need, with_field
from vlpipe.stages.alignment.base import TextWindowStage
from vlpipe.stages.alignment.encoders import (
    Encode,
    Vectors,
    check_windows,
    encode_each,
)
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import name_of, with_columns
from vlpipe.stages.features.windows import WindowFeats
from vlpipe.stages.video.rows import CUES

Cue = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
EQUAL = 1e-6  # scores closer than this are ties; the smaller shift wins


@dataclass(frozen=True, kw_only=True)
class RetimeCues(TextWindowStage):
    """For video rows: shifts the times of `cues` and their words; adds `cue_shift_s`, `cue_score` per cue (list<float32>).

    Candidates are shifts from -max_shift_s to max_shift_s in steps of step_s that keep the cue within the video. The score
    of a shift is the mean dot product of text and windows with their centre in the shifted cue, else that of the nearest
    one. The best shift (ties: the smallest, then the earlier) is applied if its score exceeds that of shift 0 by more than
    `min_gain`. together: one shift for all cues of a video, the best on average of those that keep each of them within the
    video; for tracks that are late as a whole. cue_score: score of the cue at its new time. A cue without text or times, or
    in a video without windows, is not shifted; its score is null.
    model, words, max_words, encoder: as in `alignment.clip_text_score`; the video rows need `s3d` or `frame_feats`.
    """

    NAME: ClassVar[str] = "features.retime:RetimeCues"

    max_shift_s: Annotated[float, Field(ge=0)] = 10.0
    step_s: Annotated[float, Field(gt=0)] = 0.5
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    together: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "alignment.retime", cues=CUES, duration_s=pa.float64())
        check_windows(inp, "alignment.retime", self.column)
        out = with_field(inp, pa.field("cue_shift_s", pa.list_(pa.float32())))
        return with_field(out, scored("cue_score", pa.list_(pa.float32()), name_of(self.model, self.encoder)))

    def compare(self, rows: pa.Table, encode: Encode, windows: Iterator[WindowFeats]) -> pa.Table:
        videos = rows.select(["cues", "duration_s"]).to_pylist()
        usable = [[cue for cue in video["cues"] or () if _usable(cue)] for video in videos]
        vectors = encode_each(encode, [cue["text"] for cues in usable for cue in cues])
        at, shifts, scores = 0, [], []
        for video, cues, ours in zip(videos, usable, windows, strict=True):
            found = iter(self._shifts(cues, vectors[at : at + len(cues)], ours, video["duration_s"]))
            at += len(cues)
            both = [next(found) if _usable(cue) else (0.0, None) for cue in video["cues"] or ()]
            shifts.append([shift for shift, _ in both])
            scores.append([score for _, score in both])
        new = [
            None if video["cues"] is None else [moved(c, s) for c, s in zip(video["cues"], some, strict=True)]
            for video, some in zip(videos, shifts, strict=True)
        ]
        return with_columns(
            rows,
            cues=pa.array(new, CUES),
            cue_shift_s=pa.array(shifts, pa.list_(pa.float32())),
            cue_score=pa.array(scores, pa.list_(pa.float32())),
        )

    def _shifts(
        self, cues: Sequence[Cue], vectors: Vectors, windows: WindowFeats, duration_s: float | None
    ) -> list[tuple[float, float | None]]:
        """Returns (shift in seconds, score at that shift) of each cue, (0, None) if the video has no windows.

        vectors: of the cues' texts, (cues, D). duration_s: None if unknown.
        """
        if not cues or not len(windows.feats):
            return [(0.0, None)] * len(cues)
        sims = windows.feats.astype(np.float64) @ vectors.T.astype(np.float64)  # (W, cues)
        num = math.floor(self.max_shift_s / self.step_s + 1e-9)
        shifts_s: Floats = np.arange(-num, num + 1, dtype=np.float64) * self.step_s
        table = np.stack(
            [
                scores_at(windows, sims[:, k], cue["start_s"], cue["end_s"], shifts_s, duration_s or math.inf)
                for k, cue in enumerate(cues)
            ]
        )  # (cues, shifts); -inf: outside the video
        if self.together:
            best = [best_shift(table.mean(0), shifts_s, self.min_gain)] * len(cues)
        else:
            best = [best_shift(row, shifts_s, self.min_gain) for row in table]
        return [(float(shifts_s[b]), float(table[k, b])) for k, b in enumerate(best)]


def scores_at(
    windows: WindowFeats, sims: Floats, start_s: float, end_s: float, shifts_s: Floats, duration_s: float
) -> Floats:
    """Returns a score per shift (S,): the mean of `sims` over windows with their centre in [start_s, end_s), shifted.

    sims: dot product of the text with each window, (W,). If no centre is inside, the nearest window counts. The score is
    -inf for a shift, other than 0, that moves the cue out of the video.
    """
    middles = (windows.start_s.astype(np.float64) + windows.end_s) / 2
    first, stop = (np.searchsorted(middles, time_s + shifts_s) for time_s in (start_s, end_s))
    sums = np.concatenate([[0.0], np.cumsum(sims)])
    means = (sums[stop] - sums[first]) / np.maximum(stop - first, 1)
    centre = (start_s + end_s) / 2 + shifts_s
    nearest = np.abs(middles[:, None] - centre).argmin(0)
    outside = (start_s + shifts_s < -EQUAL) | (end_s + shifts_s > duration_s + EQUAL)
    return np.where(outside & (shifts_s != 0), -np.inf, np.where(stop > first, means, sims[nearest]))


def best_shift(scores: Floats, shifts_s: Floats, min_gain: float) -> int:
    """Returns the index of the best shift (ties: the smallest, then the earlier).

    That of shift 0, which must be among `shifts_s`, unless the best score exceeds its score by more than `min_gain`.
    """
    still = int(np.flatnonzero(shifts_s == 0)[0])
    if scores.max() - scores[still] <= max(min_gain, EQUAL):
        return still
    equal = np.flatnonzero(scores >= scores.max() - EQUAL)
    return int(min(equal, key=lambda k: (abs(shifts_s[k]), shifts_s[k])))


def moved(cue: Cue, shift_s: float) -> dict[str, Any]:
    if shift_s == 0:
        return dict(cue)
    words = cue["words"] and [{**word, **_times(word, shift_s)} for word in cue["words"]]
    return {**cue, **_times(cue, shift_s), "words": words}


def _times(timed: Mapping[str, Any], shift_s: float) -> dict[str, float]:
    return {name: timed[name] + shift_s for name in ("start_s", "end_s")}


def _usable(cue: Cue) -> bool:
    times = [cue["start_s"], cue["end_s"]]
    return bool(cue["text"] and cue["text"].strip()) and all(
        t is not None and math.isfinite(t) for t in times
    )
