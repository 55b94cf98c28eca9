"""Converts what a stage's function returned to what the stage declared: casts columns, makes rejects and logs storable.

This happens inside the guarded call (see `guard`), so a value that cannot be cast rejects only its own row.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.rejects import MAX_CODE, settled_reject
from vlpipe.pipeline.engine.worker.guard import Faults, MissingColumns
from vlpipe.pipeline.errors import RowFault, SchemaError
from vlpipe.pipeline.parquet.conform import cast, conform, need_columns
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.storage.storable import storable, storable_json

BAD_VALUE = "bad_value"  # reject code of a row whose value cannot be cast to the declared type


@dataclass(frozen=True)
class Settle:
    """Callable that converts a result. key: the column with input ids: `id`, or `parent` if output rows are children."""

    who: str
    schema: pa.Schema
    key: str
    faults: Faults

    def __call__(self, result: Any, num_rows: int) -> Out:
        """Returns the output for `num_rows` input rows. Raises TypeError or MissingColumns if it cannot be converted."""
        out = result if isinstance(result, Out) else Out(result)
        rejects = [settled_reject(one) for one in out.rejects]
        counts, log = _counts(out.counts), [storable_json(line) for line in out.log]
        table, bad = self._table(out.table)
        rejected = {one.id for one in rejects}
        bad = {id_: error for id_, error in bad.items() if id_ not in rejected}
        self.faults.num_good += num_rows - len(bad)
        rejects += [self.faults.blame(id_, error) for id_, error in bad.items()]
        return Out(table, rejects, log, counts)

    def _table(self, table: Any) -> tuple[pa.Table, dict[str, RowFault]]:
        """Returns (rows with the declared columns, id -> fault of each row with a value that cannot be cast)."""
        try:
            table = need_columns(table, self.schema, self.who)
        except SchemaError as error:
            raise MissingColumns(str(error)) from error
        try:
            return conform(table, self.schema, self.who), {}
        except ValueError:
            ids = cast(table[self.key], self.schema.field(self.key)).to_pylist()
        bad: dict[str, RowFault] = {}
        for row, why in _bad_rows(table, self.schema, self.who).items():
            bad.setdefault(ids[row], RowFault(BAD_VALUE, str(why)))
        left = table.filter(pa.array([id_ not in bad for id_ in ids], pa.bool_()))
        return conform(left, self.schema, self.who), bad


def _bad_rows(table: pa.Table, schema: pa.Schema, who: str) -> dict[int, ValueError]:
    """Returns row number -> error of each row that does not conform, in order; found by halving."""
    found: dict[int, ValueError] = {}
    waiting = [(0, table.num_rows)]
    while waiting:
        start, num = waiting.pop()
        try:
            conform(table.slice(start, num), schema, who)
        except ValueError as error:
            if num == 1:
                found[start] = error
            else:
                waiting += [(start + num // 2, num - num // 2), (start, num // 2)]
    return found


def _counts(counts: Mapping[str, Any]) -> dict[str, int]:
    """Returns the counts as storable names and ints. Raises TypeError if a count is not a whole number."""
    try:
        return {storable(name, MAX_CODE): operator.index(num) for name, num in counts.items()}
    except TypeError as error:
        raise TypeError(
            f"Out.counts holds {storable(repr(dict(counts)), 200)}; wanted whole numbers"
        ) from error
