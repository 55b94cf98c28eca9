"""Joins heavy columns (image bytes, features) to rows by id, from the shard that stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError


class HeavyJoin:
    """Joins heavy columns of one shard to rows with the same ids.

    Steps drop rows but do not reorder them, so each row group of heavy columns is read about once.
    """

    def __init__(self, file: pq.ParquetFile, path: str, names: Sequence[str]) -> None:
        """file: the shard that has the heavy columns `names`; path: its path, for error texts.

        Raises VlpipeError if the shard has an id more than once, since the join would be ambiguous.
        """
        self._file, self.path, self.names = file, path, list(names)
        self._place: dict[str, tuple[int, int]] = {}
        for group in range(self._file.num_row_groups):
            for row, id_ in enumerate(self._file.read_row_group(group, columns=["id"])["id"].to_pylist()):
                if self._place.setdefault(id_, (group, row)) != (group, row):
                    raise VlpipeError(
                        f"{path} has id {id_!r} more than once, so {', '.join(names)} cannot be joined by it; "
                        "the step that made it must give each row a unique id"
                    )
        self._cached: tuple[int, pa.Table] | None = None

    def _group(self, group: int) -> pa.Table:
        if self._cached is None or self._cached[0] != group:
            self._cached = (group, self._file.read_row_group(group, columns=self.names))
        return self._cached[1]

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yields the rows with the heavy columns appended, as one table per run of rows from the same heavy row group.

        Raises VlpipeError if the shard lacks a row's id.
        """
        ids = table["id"].to_pylist()
        unknown = [i for i in ids if i not in self._place]
        if unknown:
            raise VlpipeError(
                f"{len(unknown)} row(s) (first: {unknown[0]}) have no {', '.join(self.names)} in {self.path}: heavy columns "
                "are joined by id; a step that makes new ids must write them itself, or drop them from its schema"
            )
        start = 0
        while start < len(ids):  # one run of rows per heavy row group
            group = self._place[ids[start]][0]
            stop = start
            while stop < len(ids) and self._place[ids[stop]][0] == group:
                stop += 1
            found = self._group(group).take([self._place[i][1] for i in ids[start:stop]])
            yield _with(table.slice(start, stop - start), found)
            start = stop
        if not ids:
            yield _with(table, self._file.schema_arrow.empty_table().select(self.names))


def _with(table: pa.Table, found: pa.Table) -> pa.Table:
    for field in found.schema:
        table = table.append_column(field, found[field.name])
    return table
