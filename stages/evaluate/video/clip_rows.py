"""Reads clips with texts for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlpipe.pipeline.shard import is_heavy
from vlpipe.pipeline.stage import Job
from vlpipe.stages.loading.rows import Row, usable


def clip_rows(job: Job, columns: Sequence[str], size: int) -> Iterator[list[Row]]:
    """Yields up to `size` rows with usable texts, their `parent`, and the columns that makers read, as Arrow scalars."""
    for data in job.inputs:
        stored = [name for name in columns if is_heavy(data.schema.field(name))]
        light = [name for name in columns if name not in stored]
        for table in data.batches(["id", "parent", "texts", *light], stored):
            rows = [
                Row(
                    table["id"][k].as_py(),
                    k,
                    texts,
                    {**{name: table[name][k] for name in columns}, "parent": table["parent"][k].as_py()},
                )
                for k, texts in enumerate(usable(table["texts"]))
                if texts
            ]
            yield from (rows[i : i + size] for i in range(0, len(rows), size))
