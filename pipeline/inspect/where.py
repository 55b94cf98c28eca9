"""Conditions of `show --where`: one comparison by pyarrow, or any SQL condition by DuckDB (the extra `inspect`)."""

from __future__ import annotations

import re
from collections.abc import Callable

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
        import duckdb
    except ImportError as error:
        raise VlpipeError(
            f"--where {where!r}: wanted COLUMN = VALUE, for example \"why = 'timeout'\" (= != < <= > >=); "
            "other SQL conditions need DuckDB: pip install 'vlpipe[inspect]'"
        ) from error
    connection = duckdb.connect(config={"enable_external_access": "false"})

    def keep(table: pa.Table) -> pa.Table:
        try:
            mask = (
                connection.from_arrow(table).project(f"CAST(({where}) AS BOOLEAN) AS keep").to_arrow_table()
            )
        except duckdb.Error as error:
            raise VlpipeError(f"--where {where!r}: {str(error).splitlines()[0]}") from error
        return table.filter(mask["keep"])

    keep(schema.empty_table())
    return keep
