"""Evaluates re-timing: cues before and after, compared with what the demo world's films show and say at each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.video.rows import CUES

SCORES = pa.list_(pa.float32())


class Judged(NamedTuple):
    """The evaluation of one cue.

    about_seen: its subject is visible in a segment of the video; right_before, right_after: its centre is within that
    segment before and after re-timing; score: its `cue_score`.
    """

    about_seen: bool
    right_before: bool
    right_after: bool
    score: float | None


@dataclass(frozen=True, kw_only=True)
class RetimingTruth(GatherStage):
    """Emits RESULTS of videos from `alignment.retime`. videos, seen, said: ground-truth tables of `demo.video_world`.

    A cue belongs to the utterance that it overlaps most before re-timing; cues without one are ignored.
    right_place/before, right_place/after: among cues whose utterance is about a segment of the film, the fraction whose
    centre is within that segment; this is HTM-Align's recall (https://arxiv.org/abs/2204.02968).
    lag_s/before: mean over videos of |lag_s| (column of the table `videos`), in seconds; lag_s/after: of |lag_s + median
    shift of the video's cues|. score_auc: probability that a cue whose utterance is about a segment scores higher than one
    of the others; ties count half. A metric over no cues or videos is null.
    """

    ROWS_ARE: ClassVar[str] = "figures"

    videos: File
    seen: File
    said: File

    NAME: ClassVar[str] = "evaluate.retiming:RetimingTruth"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        columns = {"video": pa.string(), "cues": CUES, "cue_shift_s": SCORES, "cue_score": SCORES}
        need(inp, "ground_truth.retiming", **columns)
        return RESULTS

    def run(self, job: Job) -> None:
        lags = {row["video"]: row["lag_s"] for row in pq.read_table(self.videos.path).to_pylist()}
        segments = {(r["video"], r["segment"]): r for r in pq.read_table(self.seen.path).to_pylist()}
        said: dict[str, list[dict[str, Any]]] = {}
        for row in pq.read_table(self.said.path).to_pylist():
            said.setdefault(row["video"], []).append(row)
        (retimed,) = job.inputs
        judged: list[Judged] = []
        left: list[tuple[float, float]] = []
        for batch in retimed.batches(["video", "cues", "cue_shift_s", "cue_score"]):
            for row in batch.to_pylist():
                judged += _judge(row, said.get(row["video"], []), segments)
                if row["cue_shift_s"]:
                    lag_s = lags[row["video"]]
                    left.append((abs(lag_s), abs(lag_s + float(np.median(row["cue_shift_s"])))))
        job.emit(pa.Table.from_pylist(_results(judged, left), RESULTS))


def _judge(
    row: Mapping[str, Any],
    said: Sequence[Mapping[str, Any]],
    segments: Mapping[tuple[str, int], Mapping[str, Any]],
) -> Iterator[Judged]:
    for cue, shift_s, score in zip(row["cues"], row["cue_shift_s"], row["cue_score"], strict=True):
        old = cue["start_s"] - shift_s, cue["end_s"] - shift_s
        spoken = max(said, key=lambda one: _overlap(old, one), default=None)
        if spoken is None or _overlap(old, spoken) <= 0:
            continue
        middle_s = (cue["start_s"] + cue["end_s"]) / 2
        place = segments.get((row["video"], spoken["segment"]))
        before, after = (
            place is not None and place["start_s"] <= at < place["end_s"]
            for at in (middle_s - shift_s, middle_s)
        )
        yield Judged(spoken["about"] == "seen", before, after, score)


def _overlap(times: tuple[float, float], spoken: Mapping[str, Any]) -> float:
    return float(min(times[1], spoken["end_s"]) - max(times[0], spoken["start_s"]))


def _results(judged: Sequence[Judged], left: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    about = [one for one in judged if one.about_seen]
    scores = [
        [j.score for j in judged if j.about_seen is seen and j.score is not None] for seen in (True, False)
    ]
    figures: list[tuple[str, float | None, int]] = [
        ("right_place/before", mean(j.right_before for j in about) if about else None, len(about)),
        ("right_place/after", mean(j.right_after for j in about) if about else None, len(about)),
        ("lag_s/before", mean(before for before, _ in left) if left else None, len(left)),
        ("lag_s/after", mean(after for _, after in left) if left else None, len(left)),
        ("score_auc", auc(*scores) if all(scores) else None, sum(map(len, scores))),
    ]
    return [dict(zip(RESULTS.names, figure, strict=True)) for figure in figures]


def auc(right: Sequence[float | None], wrong: Sequence[float | None]) -> float:
    """Returns the probability that a value of `right` is above a value of `wrong`; ties count half. Neither may be empty."""
    a, b = np.array(right, np.float64)[:, None], np.array(wrong, np.float64)
    return float((a > b).mean() + (a == b).mean() / 2)
