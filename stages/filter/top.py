"""Selects exactly the top fraction of all rows by a score: n = floor(rows x fraction); ties are broken by a hash of the id.

DataComp's code takes the score at index `int(len * fraction)` and keeps all rows that reach it: one row more, and all ties.
Two steps: `TopCut` finds the last selected row, `InTop` marks the selected rows. A rule of `filter.rules`
(`in_top == true`) then rejects the others.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts

CUT = pa.schema([("threshold", pa.float64()), ("num_kept", pa.int64()), ("num_rows", pa.int64())])
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TopCut(GatherStage):
    """Finds the last selected row. Artifact `cut.json`, for `InTop`: its score and a hash of its id.

    Emits one output row (columns: CUT). Memory: 8 bytes per row, and one hash per selected row with the last score.
    column: a number per row, or a list with one number per text, of which the highest among the texts not dropped is used.
    Rows without a score are never selected, but count in the number of rows.
    """

    NAME: ClassVar[str] = "filter.top:TopCut"
    ROWS_ARE: ClassVar[str] = "the cut"
    VERSION: ClassVar[int] = 2

    column: str
    fraction: Annotated[float, Field(gt=0, le=1)]  # DataComp's CLIP filter: 0.3

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_score(inp, self.column, "filter.top")
        return CUT

    def run(self, job: Job) -> None:
        scores = np.concatenate([np.empty(0), *(s for _, s in self._read(job))])
        num_kept = int(Fraction(str(self.fraction)) * len(scores))
        num_kept = min(num_kept, int((~np.isnan(scores)).sum()))
        threshold, last = float("inf"), ""
        if num_kept:
            threshold = float(-np.partition(-scores, num_kept - 1)[num_kept - 1])  # nan sorts last
            num_ties = num_kept - int((scores > threshold).sum())
            ties = (
                mark for ids, s in self._read(job) for mark in _marks(ids.filter(pa.array(s == threshold)))
            )
            last = heapq.nsmallest(num_ties, ties)[-1]
        cut = {"column": self.column, "threshold": repr(threshold), "last": last}
        Path(job.artifacts, "cut.json").write_text(json.dumps(cut))
        job.emit(pa.table([[threshold], [num_kept], [len(scores)]], schema=CUT))
        job.say(f"{num_kept:,} of {len(scores):,} rows selected: {self.column} >= {threshold:.6g}")

    def _read(self, job: Job) -> Iterator[tuple[pa.ChunkedArray, Scores]]:
        for data in job.inputs:
            nested = pa.types.is_list(data.schema.field(self.column).type)
            for rows in data.batches(["id", self.column, *(["texts"] if nested else [])]):
                yield rows["id"], row_scores(rows, self.column)


@dataclass(frozen=True, kw_only=True)
class InTop(MapStage):
    """Adds `in_top` (bool): True for the selected rows.

    cut: `{from: STEP, path: cut.json}` of a `TopCut` over the same rows. column: the same as in that step.
    """

    NAME: ClassVar[str] = "filter.top:InTop"
    VERSION: ClassVar[int] = 2

    column: str
    cut: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.top", id=pa.string())
        check_score(inp, self.column, "filter.top")
        return with_field(inp, pa.field("in_top", pa.bool_()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        cut = read_cut(self.cut.path, self.column)
        threshold, last = float(cut["threshold"]), cut["last"]

        def work(rows: pa.Table) -> pa.Table:
            scores = row_scores(rows, self.column)
            found, tied = scores > threshold, scores == threshold
            found[tied] = [mark <= last for mark in _marks(rows["id"].filter(pa.array(tied)))]
            return with_columns(rows, in_top=pa.array(found))

        yield work


def _marks(ids: pa.ChunkedArray) -> list[str]:
    """Returns hashes of the ids. The artifact must not contain ids: `vlpipe forget` could not remove them from it."""
    return [hashlib.sha256(f"filter.top {id_}".encode()).hexdigest() for id_ in ids.to_pylist()]


def check_score(schema: pa.Schema, column: str, who: str) -> None:
    """Raises SchemaError unless the column is a number per row or a list of numbers per text."""
    if column not in schema.names:
        need(schema, who, **{column: pa.float32()})
    dtype = schema.field(column).type
    nested = pa.types.is_list(dtype)
    inner = dtype.value_type if nested else dtype
    if nested:
        need(schema, who, texts=TEXTS)
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        raise SchemaError(f"{who} needs numbers in column {column!r}, but the column is {dtype}")


def row_scores(rows: pa.Table, column: str) -> Scores:
    """Returns the score of each row, (N,): of a list column, the highest among texts not dropped; nan if it has none."""
    if not pa.types.is_list(rows.schema.field(column).type):
        return as_floats(rows[column])
    texts = FlatTexts(rows["texts"])
    values = as_floats(texts.aligned(column, rows[column]))
    best = np.full(rows.num_rows, -np.inf)
    usable = texts.kept() & ~np.isnan(values)
    np.maximum.at(best, texts.row[usable], values[usable])
    has = np.zeros(rows.num_rows, np.bool_)
    has[texts.row[usable]] = True
    return np.where(has, best, np.nan)


def as_floats(values: pa.Array) -> Scores:
    return np.asarray(pc.fill_null(pc.cast(values, pa.float64()), np.nan).to_numpy(), np.float64)


def read_cut(path: str, column: str) -> dict[str, Any]:
    try:
        cut: dict[str, Any] = json.loads(Path(path).read_bytes())
        found = cut["column"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VlpipeError(
            f"cut: {path} cannot be read ({error}); wanted {{from: STEP, path: cut.json}}"
        ) from error
    if found != column:
        raise VlpipeError(
            f"cut: {path} is for column {found!r}, but this step has `column: {column}`; set the same column in both steps"
        )
    return cut
