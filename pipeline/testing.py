"""Runs one stage on a small table without a workflow, in tests or in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.parquet.conform import conform
from vlpipe.pipeline.parquet.row_conservation import check_conserved, check_has_children
from vlpipe.pipeline.shard import Out, Reject, write_shard
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, MapStage
from vlpipe.pipeline.storage.store import Store


def run_map(stage: MapStage, table: pa.Table) -> Out:
    """Returns the stage's output for one batch. Checks the declared columns, and that no row is lost."""
    schema = stage.schema(table.schema)
    with stage.open() as work:
        result = work(table)
    out = result if isinstance(result, Out) else Out(result)
    out.table = conform(out.table, schema, type(stage).__name__)
    who, ids_in, rejected = type(stage).__name__, table["id"].to_pylist(), [r.id for r in out.rejects]
    if stage.FAN_OUT:
        check_has_children(who, ids_in, out.table["parent"].to_pylist(), rejected)
    else:
        check_conserved(who, Counter(ids_in), Counter(out.table["id"].to_pylist()), Counter(rejected))
    return out


def dataset(folder: Path, table: pa.Table, name: str = "input", shard_rows: int = 1000) -> Dataset:
    """Writes `table` as shards of `shard_rows` rows below `folder` and returns them as a step's output."""
    store = Store(str(folder))
    shards = [
        write_shard(store, f"{name}/{k:06d}.parquet", [table.slice(start, shard_rows)], table.schema)
        for k, start in enumerate(range(0, table.num_rows, shard_rows))
    ]
    return Dataset(store, name, table.schema, tuple(shards))


@dataclass
class GatherOutput:
    """Rows and rejects of a gather stage, and the folder of its artifacts."""

    tables: list[pa.Table] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    artifacts: Path = Path()

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables(self.tables)


def run_gather(
    stage: GatherStage, inputs: Sequence[Dataset], folder: Path, say: Callable[[str], None] = print
) -> GatherOutput:
    """Runs a gather stage in this process. Resumable parts go to `folder/work`, artifacts to `folder/artifacts`."""
    got = GatherOutput(artifacts=folder / "artifacts")
    for sub in ("work", "artifacts"):
        (folder / sub).mkdir(parents=True, exist_ok=True)

    def launch(fn: Callable[[Any], None], config: Any, num_workers: int = 1, gpu: bool = False) -> None:
        assert num_workers == 1, f"run_gather trains in one process, got num_workers={num_workers}"
        fn(config)

    stage.run(
        Job(
            inputs=tuple(inputs),
            work=str(folder / "work"),
            artifacts=str(folder / "artifacts"),
            emit=got.tables.append,
            reject=got.rejects.extend,
            launch=launch,
            say=say,
        )
    )
    return got
