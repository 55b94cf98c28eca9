"""Conditions of `show --where`: one comparison by pyarrow, or any SQL condition by DuckDB (the extra `inspect`)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError, did_you_mean

COMPARISON = re.compile(r"""\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*('[^']*'|"[^"]*"|[^\s'"<=>!]+)\s*""")
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
Keep = Callable[[pa.Table], pa.Table]  # rows -> those that meet the condition


def parse_where(where: str, schema: pa.Schema) -> Keep:
    """Returns a function that keeps the rows that meet a condition.

    where: `COLUMN = VALUE` (also != < <= > >=), or an SQL condition such as `len(texts) > 1 AND clip_score > 0.3`.
    Raises VlpipeError if it does not fit the schema, or if it is SQL and DuckDB is not installed.
    """
    found = COMPARISON.fullmatch(where)
    return _comparison(found, schema) if found else _sql(where, schema)


def _comparison(found: re.Match[str], schema: pa.Schema) -> Keep:
    name, operator, value = found[1], found[2], found[3].strip("'\"")
    if name not in schema.names:
        raise VlpipeError(f"--where: there is no column {name!r}{did_you_mean(name, schema.names)}")
    dtype = schema.field(name).type
    try:
        wanted = pa.scalar(value).cast(dtype)
        COMPARE[operator](pa.array([], dtype), wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise VlpipeError(
            f"--where: column {name!r} is {dtype} and cannot be compared with {value!r}"
        ) from error
    return lambda table: table.filter(COMPARE[operator](table[name], wanted))


def _sql(where: str, schema: pa.Schema) -> Keep:
    try:
        test = _sql_test(where, schema)
    except ImportError as error:
        raise VlpipeError(
            f"--where {where!r}: wanted COLUMN = VALUE, for example \"why = 'timeout'\" (= != < <= > >=); "
            "other SQL conditions need DuckDB: pip install 'vlpipe[inspect]'"
        ) from error
    return lambda table: table.filter(test(table))


def _sql_test(where: str, schema: pa.Schema) -> Callable[[pa.Table], pa.ChunkedArray]:
    """Returns a function that says of each row whether it meets the condition. It may be called by several threads.

    Raises VlpipeError if the condition does not fit the schema, ImportError if DuckDB is not installed.
    """
    import duckdb

    connection = duckdb.connect(config={"enable_external_access": "false", "lock_configuration": "true"})

    def test(table: pa.Table) -> pa.ChunkedArray:
        try:
            rows = connection.cursor().from_arrow(table)
            return rows.project(f"CAST(({where}) AS BOOLEAN) AS keep").to_arrow_table()["keep"]
        except duckdb.Error as error:
            raise VlpipeError(f"--where {where!r}: {str(error).splitlines()[0]}") from error

    test(schema.empty_table())
    return test


def sql_masks(where: str, schema: pa.Schema) -> tuple[list[str], Callable[[pa.Table], npt.NDArray[np.bool_]]]:
    """Returns the columns that a condition in SQL may read, and a function from rows with these to a mask, (num_rows,).

    Raises VlpipeError if the condition does not fit the schema, or DuckDB is not installed.
    """
    words = set(re.findall(r"\w+", where.lower()))
    named = [f.name for f in schema if f.name.lower() in words or not re.fullmatch(r"\w+", f.name)]
    columns = named or schema.names[:1]
    try:
        test = _sql_test(where, pa.schema([schema.field(name) for name in columns]))
    except ImportError as error:
        raise VlpipeError("a condition in SQL needs DuckDB: pip install 'vlpipe[ui]'") from error

    def mask(table: pa.Table) -> npt.NDArray[np.bool_]:
        return np.asarray(pc.fill_null(test(table), False).to_numpy(zero_copy_only=False), bool)

    return columns, mask
