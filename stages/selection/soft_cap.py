"""Samples texts in proportion to what a judge thinks of them, with a soft cap on how often one is repeated.

After Soft Cap Sampling (Shechter and Carmon, 2025, https://arxiv.org/abs/2503.08805), in which each time that a text was
drawn lowers its log-probability by a penalty. Here a text with score s occurs (s - start) / penalty times: lowered by the
penalty once per time that it occurs, its score ends where all others end. `start` is such that all occur as often as wanted
in total, and texts below it do not occur at all.
Two steps: `SoftCapCut` finds `start`, `Copies` adds the number of times as a column, which a training reads as `copies`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.common.batches import draws
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.selection.text_scores import FIELD, check_scores, scores_of

CUT = pa.schema([("start", pa.float64()), ("num_samples", pa.int64()), ("num_texts", pa.int64())])
MAX_COPIES = 100
ROUNDS = 200  # halvings of the interval that `start` is in; float64 is exact after fewer
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SoftCapCut(GatherStage):
    """Finds the score from which on texts of `sources` occur. Artifact `cut.json`, for `Copies`. Emits one row (CUT).

    column, encoder: as in `selection.best`. samples_per_text: how many samples an epoch has, as a multiple of the number of
    texts with a score that are not dropped. penalty: by how much a score has to be higher for one
    occurrence more; if small, only the best texts occur, if large, all occur equally. max_copies: the hard limit.
    Raises VlpipeError if no text has a score. Memory: 16 bytes per text.
    """

    NAME: ClassVar[str] = "selection.soft_cap:SoftCapCut"
    ROWS_ARE: ClassVar[str] = "the cut"

    column: str
    encoder: str = ""
    penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    samples_per_text: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_copies: Annotated[int, Field(ge=1)] = MAX_COPIES
    sources: tuple[str, ...] = ("web", "synth")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.soft_cap", id=pa.string(), texts=TEXTS)
        check_scores(inp, self.column, self.encoder, "selection.soft_cap")
        return CUT

    def preflight(self) -> list[str]:
        if self.samples_per_text <= self.max_copies:
            return []
        return [
            f"samples_per_text {self.samples_per_text} cannot be reached with max_copies {self.max_copies}"
        ]

    def run(self, job: Job) -> None:
        scores = np.concatenate([np.empty(0), *self._read(job)])
        if not len(scores):
            raise VlpipeError(
                f"selection.soft_cap: no text of {', '.join(self.sources)} that is kept has a score in {self.column!r}"
            )
        start = start_of(scores, self.samples_per_text * len(scores), self.penalty, self.max_copies)
        cut = {
            "column": self.column,
            "start": repr(start),
            "penalty": self.penalty,
            "max_copies": self.max_copies,
            "sources": list(self.sources),
        }
        Path(job.artifacts, "cut.json").write_text(json.dumps(cut))
        wanted = expected(scores, start, self.penalty, self.max_copies)
        num = round(float(wanted.sum()))
        job.emit(pa.table([[start], [num], [len(scores)]], schema=CUT))
        job.say(
            f"{num:,} samples of {int((wanted > 0).sum()):,} of {len(scores):,} texts: {self.column} > {start:.6g}, "
            f"at most {wanted.max():.2f} times"
        )

    def _read(self, job: Job) -> Iterator[Scores]:
        columns = ["texts", *([] if self.column.startswith(FIELD) else [self.column])]
        for data in job.inputs:
            for rows in data.batches(columns):
                texts = FlatTexts(rows["texts"])
                scores = scores_of(rows, texts, self.column)
                yield scores[texts.still_in(self.sources) & ~np.isnan(scores)]


@dataclass(frozen=True, kw_only=True)
class Copies(MapStage):
    """Adds `column`: list<int32>, how often each text occurs in an epoch of a training with `copies: COLUMN`.

    cut: `{from: STEP, path: cut.json}` of a `SoftCapCut` over the same rows. A number between two integers is one of them at
    random, with the right mean; the draw depends only on (seed, row id, place of the text). Texts of other sources and
    without a score get null: once, or never if dropped. Counts: `copies`, `texts_with_copies`.
    """

    NAME: ClassVar[str] = "selection.soft_cap:Copies"

    cut: File
    column: str = "copies"
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.soft_cap", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field(self.column, pa.list_(pa.int32())))

    @contextmanager
    def open(self) -> Iterator[Work]:
        cut = read_cut(self.cut.path)

        def work(rows: pa.Table) -> Out:
            texts = FlatTexts(rows["texts"])
            scores = scores_of(rows, texts, cut["column"])
            ours = texts.still_in(cut["sources"]) & ~np.isnan(scores)
            wanted = expected(
                np.where(ours, scores, -np.inf), float(cut["start"]), cut["penalty"], cut["max_copies"]
            )
            whole = np.floor(wanted)
            copies = whole + (self._uniform(rows, texts) < wanted - whole)
            column = texts.nested(pa.array(copies.astype(np.int32), mask=~ours))
            counts = {
                "copies": int(copies[ours].sum()),
                "texts_with_copies": int((copies[ours] > 0).sum()),
            }
            return Out(with_columns(rows, **{self.column: column}), counts=counts)

        yield work

    def _uniform(self, rows: pa.Table, texts: FlatTexts) -> Scores:
        ids = rows["id"].to_pylist()
        places = np.arange(len(texts.row)) - np.repeat(
            np.cumsum(texts.lengths) - texts.lengths, texts.lengths
        )
        names = (f"{ids[r]}\x00{p}" for r, p in zip(texts.row.tolist(), places.tolist(), strict=True))
        return np.asarray((draws(self.seed, names) >> np.uint64(11)) / 2**53, np.float64)


def expected(scores: Scores, start: float, penalty: float, max_copies: int) -> Scores:
    """Returns how often each text is to occur, (M,): (score - start) / penalty, from 0 to `max_copies`."""
    return np.clip((scores - start) / penalty, 0, max_copies)


def start_of(scores: Scores, total: float, penalty: float, max_copies: int) -> float:
    """Returns the `start` with which all texts together occur `total` times; it is at most max_copies x their number.

    A score of inf gives max_copies, -inf none. Raises VlpipeError if finite scores cannot give the rest.
    """
    finite = scores[np.isfinite(scores)]
    total -= max_copies * np.isposinf(scores).sum()  # which -inf and inf get in any case
    if not len(finite) or not 0 < total <= max_copies * len(finite):
        raise VlpipeError(
            f"selection.soft_cap: of {len(scores):,} scores, {len(finite):,} are finite numbers, which cannot occur "
            f"{total:,.0f} times, {max_copies} each at most; look for inf in the scores"
        )
    scores = finite
    low, high = float(scores.min()) - penalty * max_copies, float(scores.max())
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if expected(scores, middle, penalty, max_copies).sum() >= total:
            low = middle
        else:
            high = middle
    return low


def read_cut(path: str) -> dict[str, Any]:
    """Returns the content of a `cut.json` of `SoftCapCut`. Raises VlpipeError if it is another file."""
    try:
        cut: dict[str, Any] = json.loads(Path(path).read_bytes())
        float(cut["start"]), cut["penalty"], cut["max_copies"], cut["sources"], cut["column"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VlpipeError(
            f"cut: {path} cannot be read ({type(error).__name__}: {error}); wanted {{from: STEP, path: cut.json}} of a "
            "step of selection.soft_cap:SoftCapCut"
        ) from error
    return cut
