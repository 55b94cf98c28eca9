"""SQL over the rows of a step, by DuckDB, which may read the step's files and nothing else, and write nowhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.parquet.image_files import stored_images
from vlpipe.pipeline.storage.store import Store

NAME = "rows"
MEMORY = "2GB"  # what DuckDB may use; there is no folder to spill to


def query(table: RowTable, sql: str, max_rows: int) -> tuple[pa.Table, bool]:
    """Returns the first `max_rows` rows of a query over the view `rows`, and whether there are more.

    The view has the step's light columns, and those heavy ones that the query names, joined by id. Raises VlpipeError if it
    is not one SELECT, does not fit the columns, if DuckDB is not installed, or if the root is not on a local disk.
    """
    try:
        import duckdb
    except ImportError as error:
        raise VlpipeError("--sql needs DuckDB: pip install 'vlpipe[inspect]'") from error
    if not table.store.is_local:
        raise VlpipeError(f"--sql reads local roots; {table.store.url} is none: copy the step's folder")
    shards = [shard for shard in table.shards if shard.num_rows] or list(table.shards[:1])
    if not shards:
        raise VlpipeError("the step has no shard yet")
    view, paths = _view(table, sql, [shard.path for shard in shards])
    connection = duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": ""})
    try:
        allowed = ", ".join(_text(table.store.path(path)) for path in paths)
        connection.execute(f"SET allowed_paths = [{allowed}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise VlpipeError("--sql wants one SELECT, over the view `rows`")
        connection.execute(f"CREATE VIEW {NAME} AS {view}")
        found = connection.sql(sql).limit(max_rows + 1).to_arrow_table()
    except duckdb.Error as error:
        raise VlpipeError(f"--sql: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()
    return found.slice(0, max_rows), found.num_rows > max_rows


def _view(table: RowTable, sql: str, light: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the SELECT of the view, and the files that it reads."""
    words = set(re.findall(r"\w+", sql.lower()))
    wanted = [column for column in table.heavy if column.lower() in words]
    own = _columns(table) & set(wanted)
    select = [f"l.{_name(f)}" for f in [*table.light.names, *(c for c in wanted if c in own)]]
    joins, paths = [], list(light)
    for n, column in enumerate(c for c in wanted if c not in own):
        holders = [*dict.fromkeys(shard.holder(column).path for shard in table.shards if shard.num_rows)]
        select.append(f"h{n}.{_name(column)}")
        joins.append(f"JOIN {_rows(table, holders, ['id', column])} h{n} ON h{n}.id = l.id")
        paths += holders
    rows = _rows(table, light, [*table.light.names, *sorted(own)])
    return f"SELECT {', '.join(select)} FROM {rows} l {' '.join(joins)}", [*dict.fromkeys(paths)]


def _rows(table: RowTable, paths: Sequence[str], columns: Sequence[str]) -> str:
    """Returns a SELECT of columns of files, in parentheses: image files as bytes, whether stored as bytes or structs."""
    alike: dict[str, list[str]] = {}
    for path in paths:
        heavy = set(columns) & set(table.heavy)
        images = set(stored_images(pq.read_schema(table.store.path(path)))) if heavy else set()
        select = [f"{_name(c)}.bytes AS {_name(c)}" if c in images else _name(c) for c in columns]
        alike.setdefault(", ".join(select), []).append(path)
    selects = [f"SELECT {select} FROM {_files(table.store, files)}" for select, files in alike.items()]
    return f"({' UNION ALL '.join(selects)})"


def _columns(table: RowTable) -> set[str]:
    """Returns the heavy columns that are in the step's own files."""
    shard = table.shards[0]
    return {column for column in table.heavy if shard.holder(column) is shard}


def _files(store: Store, paths: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(_text(store.path(path)) for path in paths)}])"


def _text(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
