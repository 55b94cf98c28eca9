"""Conditions on rows, such as `texts.score < 0.3` and `texts.source = web`, and the positions of the rows that meet them.

Conditions on fields of the same list must hold for the same element of the list: a web text with a score below 0.3. Those
written `texts#2.source = synth` must hold together for an element that may be another one. Only columns of conditions are
read; what was found is kept, so that the next page of it costs no search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.inspect.rows.columns import ColumnReader, Leaf, Values, find_leaf, read_leaf
from vlpipe.pipeline.inspect.rows.table import Positions, RowTable
from vlpipe.pipeline.inspect.rows.where import sql_masks
from vlpipe.pipeline.parquet.file import Parquet

WRITTEN = re.compile(r"\s*([\w.@#-]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
BEST = ".max"  # texts.score.max: of each row, the largest value that is not null
CACHE_BYTES = 96 << 20
MAX_CONDITIONS = 16

Mask = npt.NDArray[np.bool_]
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
    "!=": np.not_equal,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """op: one of = != < <= > >= and ~ (the text contains it, in lower or upper case). A value `null` means no value."""

    path: str
    op: str
    value: str

    @property
    def element(self) -> str:
        """Returns the number after `#`: which element of a list is meant; empty: the first."""
        return self.path.partition("#")[2].partition(".")[0]

    @property
    def column(self) -> str:
        """Returns the path without `#` and the element's number: the column and its fields."""
        return self.path.replace(f"#{self.element}", "", 1) if self.element else self.path

    def __str__(self) -> str:
        return f"{self.path}{self.op}{self.value}"


def parse_condition(text: str) -> Condition:
    """Returns a condition written as `texts.score<0.3`. Raises VlpipeError if it is none."""
    found = WRITTEN.fullmatch(text)
    if found is None:
        raise VlpipeError(f"wanted COLUMN, one of = != < <= > >= ~, and a value; got {shown(text)}")
    return Condition(found[1], found[2], found[3])


class Queries:
    """Finds rows that meet conditions. Keeps columns and results in at most CACHE_BYTES bytes."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.columns = ColumnReader(max_bytes)

    def matching(
        self, table: RowTable, conditions: Sequence[Condition], sql: str = "", order: str = ""
    ) -> Positions | None:
        """Returns the positions of the rows that meet all conditions; None if there is neither a condition nor an order.

        sql: one more condition, in SQL. order: a column with numbers, `-` before it for the largest value first; rows
        without a value come last. Raises VlpipeError if something does not fit the columns.
        """
        if not (conditions or sql or order):
            return None
        if len(conditions) > MAX_CONDITIONS:
            raise VlpipeError(f"wanted at most {MAX_CONDITIONS} conditions, got {len(conditions)}")
        key = (table.store.url, table.version, "found", tuple(conditions), sql, order)
        return self.columns.cache.get(
            key, lambda: self._matching(table, conditions, sql, order), lambda found: int(found.nbytes)
        )

    def _matching(self, table: RowTable, conditions: Sequence[Condition], sql: str, order: str) -> Positions:
        rows = self.mask(table, conditions)
        if sql:
            rows &= self._sql(table, sql)
        found = np.flatnonzero(rows).astype(np.uint32)
        return self._ordered(table, found, order) if order else found

    def mask(self, table: RowTable, conditions: Sequence[Condition]) -> Mask:
        """Returns for each row whether it meets all conditions, (num_rows,)."""
        rows = np.ones(table.num_rows, bool)
        by_list: dict[tuple[str, str], list[tuple[Leaf, Condition]]] = {}
        for one in conditions:
            if one.path.endswith(BEST):
                rows &= _compare(self.best(table, one.path.removesuffix(BEST)), None, one)
                continue
            leaf = find_leaf(table.light, one.column)
            if leaf.in_list and one.op == "=" and one.value == "none":
                has = np.zeros(table.num_rows, bool)
                has[self.columns.values(table, leaf).rows] = True
                rows &= ~has
            elif leaf.in_list:
                by_list.setdefault((leaf.in_list, one.element), []).append((leaf, one))
            else:
                rows &= self._elements(table, leaf, one)[0]
        for wanted in by_list.values():
            masks = [self._elements(table, leaf, one) for leaf, one in wanted]
            both = np.logical_and.reduce([mask for mask, _ in masks])
            has = np.zeros(table.num_rows, bool)
            has[masks[0][1][both]] = True  # type: ignore[index]  # a list's values have rows
            rows &= has
        return rows

    def elements(self, table: RowTable, leaf: Leaf, conditions: Sequence[Condition]) -> Mask:
        """Returns for each value of the column whether its row meets the conditions on other columns, and its element
        those on the same list, (V,)."""
        values = self.columns.values(table, leaf)
        same = [c for c in conditions if leaf.in_list and c.path.startswith(f"{leaf.in_list}.")]
        same = [c for c in same if not c.path.endswith(BEST)]
        rows = self.mask(table, [c for c in conditions if c not in same])
        found = rows.copy() if values.rows is None else rows[values.rows]
        for one in same:
            found &= self._elements(table, find_leaf(table.light, one.path), one)[0]
        return found

    def best(self, table: RowTable, path: str) -> npt.NDArray[Any]:
        """Returns each row's largest value of a column of numbers, (num_rows,); NaN if it has none."""

        def load() -> npt.NDArray[Any]:
            values = self.columns.values(table, _number(table, path))
            if values.rows is None:
                return values.data
            best = np.full(table.num_rows, np.nan, values.data.dtype)
            finite = np.isfinite(values.data)
            rows, data = values.rows[finite], values.data[finite]
            if len(rows):
                first = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
                best[rows[first]] = np.maximum.reduceat(data, first)
            return best

        key = (table.store.url, table.version, "best", path)
        return self.columns.cache.get(key, load, lambda best: int(best.nbytes))

    def _elements(self, table: RowTable, leaf: Leaf, one: Condition) -> tuple[Mask, Positions | None]:
        """Returns for each value of a column whether it meets the condition, and the rows of the values."""
        if leaf.is_text and (one.op == "~" or not self.columns.is_coded(table, leaf)):
            return self._searched(table, leaf, one)
        values: Values = self.columns.values(table, leaf)
        return _compare(values.data, values.names, one), values.rows

    def _searched(self, table: RowTable, leaf: Leaf, one: Condition) -> tuple[Mask, Positions | None]:
        """As `_elements`, by reading the texts; only the result is kept."""
        test = _text_test(one)

        def look(file: Parquet) -> tuple[Mask, Positions | None]:
            values, rows = read_leaf(file, leaf)
            return pc.fill_null(test(values), False).to_numpy(zero_copy_only=False), rows

        def load() -> tuple[Mask, Positions | None]:
            starts = [int(s) for s, shard in zip(table.starts, table.shards, strict=False) if shard.num_rows]
            parts = list(table.each_shard(look))
            mask = np.concatenate([np.zeros(0, bool), *(mask for mask, _ in parts)])
            if not leaf.in_list:
                return mask, None
            rows = [
                rows + np.uint32(at) for at, (_, rows) in zip(starts, parts, strict=True) if rows is not None
            ]
            return mask, np.concatenate([np.zeros(0, np.uint32), *rows])

        key = (table.store.url, table.version, "searched", one)
        size = lambda found: int(found[0].nbytes + (0 if found[1] is None else found[1].nbytes))  # noqa: E731
        return self.columns.cache.get(key, load, size)

    def _sql(self, table: RowTable, sql: str) -> Mask:
        columns, keep = sql_masks(sql, table.light)
        parts = table.each_shard(lambda file: keep(file.read(columns=columns, use_threads=False)))
        return np.concatenate([np.zeros(0, bool), *parts])

    def _ordered(self, table: RowTable, found: Positions, order: str) -> Positions:
        path = order.removeprefix("-")
        values = self.best(table, path.removesuffix(BEST))[found].astype(np.float64)
        values = -values if order.startswith("-") else values
        return found[np.argsort(values, kind="stable")]  # NaN comes last


def _number(table: RowTable, path: str) -> Leaf:
    leaf = find_leaf(table.light, path)
    if not leaf.is_number:
        raise VlpipeError(f"column {path!r} holds {leaf.dtype}, wanted numbers")
    return leaf


def _compare(data: npt.NDArray[Any], names: Sequence[str] | None, one: Condition) -> Mask:
    if one.value == "null" and one.op in ("=", "!="):
        is_null = np.isnan(data) if names is None else data < 0
        return np.asarray(is_null if one.op == "=" else ~is_null, bool)
    if names is not None:
        test = _text_test(one)
        hit = np.flatnonzero(np.asarray(test(pa.array(names, pa.string()))) if names else np.zeros(0, bool))
        return np.isin(data, hit.astype(data.dtype))
    try:
        wanted = float(one.value)
    except ValueError as error:
        raise VlpipeError(f"column {one.path!r} holds numbers; got {shown(one.value)}") from error
    if one.op not in COMPARE:
        raise VlpipeError(f"column {one.path!r} holds numbers, in which ~ finds nothing")
    with np.errstate(invalid="ignore"):
        mask = COMPARE[one.op](data, data.dtype.type(wanted))
    return np.asarray(mask & ~np.isnan(data), bool)


def _text_test(one: Condition) -> Callable[[pa.Array], pa.Array]:
    """Returns the function that says of each text of an array whether it meets the condition; null of a null."""
    if one.op == "~":
        return lambda texts: pc.match_substring(texts, one.value, ignore_case=True)
    if one.value == "null":
        nulls = one.op == "="
        return lambda texts: pc.is_null(texts) if nulls else pc.is_valid(texts)
    test = {"=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal}
    test |= {">": pc.greater, ">=": pc.greater_equal}
    return lambda texts: test[one.op](texts, pa.scalar(one.value, texts.type))
