"""Stages for workflows with arms, without a model: rows that a filter has judged, and an evaluation whose hits are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, SourceStage, Work
from vlpipe.stages.common.row import LISTED, RESULTS, text
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items


def row_id(n: int) -> str:
    return f"{n:064d}"


@dataclass(frozen=True, kw_only=True)
class Judged(SourceStage):
    """Rows with a web and a synthetic text; the filter kept every third web text and all but every fifth synthetic one."""

    num_rows: int

    def row_schema(self) -> pa.Schema:
        return LISTED

    def rows(self) -> Iterator[pa.Table]:
        def entry(n: int, source: str, kept: bool) -> dict[str, object]:
            return text(f"{source} words of {n}", source, kept=kept, why=None if kept else "not_matched")

        ns = range(self.num_rows)
        texts = [[entry(n, "web", n % 3 == 0), entry(n, "synth", n % 5 > 0)] for n in ns]
        yield pa.table([[row_id(n) for n in ns], [f"http://x.test/{n}" for n in ns], texts], schema=LISTED)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return LISTED

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Evaluated(GatherStage):
    """RESULTS and items of a metric `tr@1`, whose hits are drawn with probability `rate`."""

    ROWS_ARE: ClassVar[str] = "figures"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES

    rate: float
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Evaluated", id=pa.string())
        return RESULTS

    def run(self, job: Job) -> None:
        ids = job.inputs[0].table(["id"])["id"].to_pylist()
        hits = np.random.default_rng(self.seed).random(len(ids)) < self.rate
        write_items(Path(job.artifacts), [items("tr@1", list(zip(ids, ids, strict=True)), hits)])
        job.emit(pa.table([["tr@1"], [float(hits.mean())], [len(ids)]], schema=RESULTS))


@dataclass(frozen=True, kw_only=True)
class Figures(GatherStage):
    """RESULTS without items."""

    ROWS_ARE: ClassVar[str] = "figures"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return RESULTS

    def run(self, job: Job) -> None:
        job.emit(pa.table([["tr@1"], [0.5], [1]], schema=RESULTS))
