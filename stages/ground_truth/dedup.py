"""Precision and recall of deduplication on the duplicates planted in the demo world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.ground_truth.filter import read_truth


@dataclass(frozen=True, kw_only=True)
class DedupTruth(GatherStage):
    """Emits RESULTS `dedup_recall`, `dedup_recall/KIND` (exact, near) and `dedup_precision`.

    Two inputs: the rows before deduplication, then those after it, matched by `url`; truth: the demo world's truth.parquet.
    In each group of planted duplicates, all rows but one are redundant, whichever is kept. dedup_recall: fraction of
    redundant rows that were dropped; dedup_precision: fraction of dropped rows that were redundant.
    """

    ROWS_ARE: ClassVar[str] = "figures"

    truth: File

    NAME: ClassVar[str] = "evaluate.dedup:DedupTruth"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "ground_truth.dedup", url=pa.string())
        return RESULTS

    def run(self, job: Job) -> None:
        truth = read_truth(self.truth)
        before, after = (_urls(rows) for rows in job.inputs)
        results = list(_results(before, before - after, truth))
        job.emit(pa.Table.from_pylist(results, RESULTS))


def _urls(rows: Dataset) -> Counter[str]:
    return Counter(rows.table(["url"])["url"].to_pylist())


def _results(
    before: Counter[str], dropped: Counter[str], truth: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    kinds = {row["group"]: row["copy"] for row in truth.values() if row["copy"] not in (None, "original")}
    redundant = {group: num - 1 for group, num in _by_group(before, truth).items()}
    hits_of = {group: min(num, redundant[group]) for group, num in _by_group(dropped, truth).items()}
    yield _share("dedup_recall", sum(hits_of.values()), sum(redundant.values()))
    for kind in sorted(set(kinds.values())):
        hits, wanted = (
            sum(n for g, n in counts.items() if kinds[g] == kind) for counts in (hits_of, redundant)
        )
        yield _share(f"dedup_recall/{kind}", hits, wanted)
    yield _share("dedup_precision", sum(hits_of.values()), dropped.total())


def _by_group(urls: Counter[str], truth: Mapping[str, Mapping[str, Any]]) -> Counter[int]:
    """Returns group of planted duplicates -> number of rows in it. urls: URL -> number of rows."""
    groups: Counter[int] = Counter()
    for url, num in urls.items():
        group = truth[url]["group"] if url in truth else None
        if group is not None:
            groups[group] += num
    return groups


def _share(name: str, hits: int, num_rows: int) -> dict[str, Any]:
    return {"name": name, "value": hits / num_rows if num_rows else None, "num_rows": num_rows}
