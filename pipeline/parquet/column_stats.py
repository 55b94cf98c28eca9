"""Statistics of a column, which the receipt of its shard records: nulls, range of numbers, lengths of texts and lists."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def count_in(stat: dict[str, Any], column: pa.ChunkedArray) -> None:
    """Adds the values of a column to its statistics: `nulls`; of numbers also `min`, `max`, and `not_finite`, the number of
    NaN or infinite values; of texts, bytes and lists `min_length` and `max_length`, in characters, bytes and items."""
    stat["nulls"] += column.null_count
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        finite = column.filter(pc.is_finite(column))  # JSON has no NaN or infinity
        if odd := len(column) - column.null_count - len(finite):
            stat["not_finite"] = stat.get("not_finite", 0) + odd
        _widen(stat, finite, "min", "max")
    elif pa.types.is_integer(kind):
        _widen(stat, column, "min", "max")
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _widen(stat, pc.utf8_length(column), "min_length", "max_length")
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        _widen(stat, pc.binary_length(column), "min_length", "max_length")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _widen(stat, pc.list_value_length(column), "min_length", "max_length")


def _widen(stat: dict[str, Any], values: pa.ChunkedArray, least: str, most: str) -> None:
    if len(values) > values.null_count:
        low, high = pc.min_max(values).as_py().values()
        stat[least] = min(low, stat.get(least, low))
        stat[most] = max(high, stat.get(most, high))
