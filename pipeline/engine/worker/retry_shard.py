"""A shard of `vlpipe retry`: only rows rejected with given codes are run, all other rows and rejects are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import damaged, log_path, shard_path
from vlpipe.pipeline.engine.records.rejects import read_rejects
from vlpipe.pipeline.engine.worker.map_shard import ShardRun, ShardTask, check_rows, own_schema
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject, Shard, heavy_names, is_heavy, read_batches
from vlpipe.pipeline.stage import Work


@dataclass(frozen=True, kw_only=True)
class RetryTask(ShardTask):
    """again: codes of the rejects to run. counts, source: counters of the rows that are kept, and hash of their code."""

    again: frozenset[str]
    counts: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    def outputs(self, run: ShardRun, work: Work) -> Iterator[pa.Table]:
        """Yields the output tables in input order."""
        schema = own_schema(self)
        run.counts.update(self.counts)
        run.sources = frozenset(self.source.split("+")) - {""}
        before = read_rejects(self.store, self.folder, self.index).to_pylist()
        again = {r["id"] for r in before if r["kind"] == "fault" and r["why"] in self.again}
        run.log.extend(line for line in _log_before(self) if line.get("id") not in again)
        stay = {
            r["id"]: Reject(r["id"], r["kind"], r["why"], r["detail"]) for r in before if r["id"] not in again
        }
        old = Shard(path=shard_path(self.folder, self.index), num_rows=-1, digest="", heavy=())
        light = [f.name for f in schema if not is_heavy(f)]
        tables = read_batches(self.store, old, light, heavy_names(schema))
        kept = _Kept(table.select(schema.names).cast(schema) for table in tables)
        for batch in run.noted(run.batches()):
            ids = batch["id"].to_pylist()
            part = batch.filter(pa.array([i in again for i in ids], pa.bool_()))
            rows, rejects = kept.of(ids), {i: stay[i] for i in ids if i in stay}
            for out in run.outputs(work, part) if part.num_rows else ():
                rejects.update({r.id: r for r in out.rejects})
                rows.update(_by_id(out.table))
            check_rows(self, Counter(ids), Counter([*rows]), Counter([*rejects]))
            run.rejects.extend(rejects[i] for i in ids if i in rejects)
            yield pa.concat_tables([schema.empty_table(), *(rows[i] for i in ids if i in rows)])
        kept.need_empty()


def _log_before(task: ShardTask) -> Iterator[dict[str, Any]]:
    """Yields the lines already in the shard's log. Raises VlpipeError if it is damaged."""
    path = log_path(task.folder, task.index)
    if not task.store.exists(path):
        return
    for line in task.store.read_bytes(path).splitlines():
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise damaged(task.store, path, error) from error


class _Kept:
    """Reads the rows of a finished shard in input order, with at most one row group of them in memory."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables, self._rows = tables, dict[str, pa.Table]()

    def of(self, ids: list[str]) -> dict[str, pa.Table]:
        """Returns id -> table of one row, for those of the input ids that the shard has rows for."""
        found: dict[str, pa.Table] = {}
        wanted = set(ids)
        while True:
            found |= {i: self._rows.pop(i) for i in [*self._rows] if i in wanted}
            if self._rows or (table := next(self._tables, None)) is None:
                return found
            self._rows = _by_id(table)

    def need_empty(self) -> None:
        if self._rows or next(self._tables, None) is not None:
            raise VlpipeError(
                "the stored shard has rows that its input lacks, or has them in another order, so rows cannot be put back "
                "into it; nothing was changed. `vlpipe verify` lists what is damaged"
            )


def _by_id(table: pa.Table) -> dict[str, pa.Table]:
    return {id_: table.slice(row, 1) for row, id_ in enumerate(table["id"].to_pylist())}
