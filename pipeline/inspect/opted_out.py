"""`<root>/opted_out/`: hashes of URLs that opted out, with the evidence. Fetches into this root never request them again.

Opt-outs are not part of keys: finished shards stay valid. If the folder is removed, later fetches request the URLs again.
The folder holds Parquet files, which `stages.web.opted_out` writes.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.engine.records.forgotten import canonical_url, hashed
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.text_sets import DIGEST, Digests, from_hex
from vlpipe.pipeline.storage.store import Store

REL = "opted_out"
SCHEMA = pa.schema(
    [
        ("hash", pa.string()),  # of the canonical URL, as in `forgotten.parquet`
        ("evidence", pa.string()),  # verbatim text of the opt-out
        ("first_seen", pa.timestamp("ms", "UTC")),
    ]
)

Row = tuple[str, str, int]  # hash, evidence, ms since 1970


def hash_of_url(url: str) -> str:
    """Returns the hex hash of the canonical form of a URL."""
    return hashed("url", canonical_url(url))


def part_names(root: Store) -> list[str]:
    """Returns the names of the Parquet files: 000000.parquet, 000001.parquet, ...

    Raises VlpipeError for a Parquet file with another kind of name, except the hidden temporary file of a running write.
    """
    names = [name for name in root.list(REL) if name.endswith(".parquet") and name[0] != "."]
    for name in names:
        if not re.fullmatch(r"\d{6,}\.parquet", name):
            raise VlpipeError(
                f"{root.path(f'{REL}/{name}')} is not named like a file of opt-outs (000000.parquet, ...); "
                "move it to another folder"
            )
    return names


def read_part(root: Store, name: str) -> list[Row]:
    """Returns the rows of one file. Raises VlpipeError if it is damaged."""
    return rows_of(read(root, name)[1])


def rows_of(table: pa.Table) -> list[Row]:
    """Returns (hash, evidence, ms since 1970) of each row of a table with the columns of SCHEMA."""
    seen = table["first_seen"].cast(pa.int64())
    return list(
        zip(*(column.to_pylist() for column in (table["hash"], table["evidence"], seen)), strict=True)
    )


def columns_of(schema: pa.Schema) -> str:
    """Returns the columns and their types as text: `hash string, evidence string`."""
    return ", ".join(f"{f.name} {f.type}" for f in schema)


def read(root: Store, name: str) -> tuple[Digests, pa.Table]:
    """Returns the hashes of one file and its table. Raises VlpipeError if it is damaged: a run must not ignore opt-outs."""
    path = f"{REL}/{name}"
    try:
        with root.open(path) as handle, pq.ParquetFile(handle) as file:
            if file.schema_arrow.remove_metadata() != SCHEMA:
                raise ValueError(f"its columns are {columns_of(file.schema_arrow)}, not {columns_of(SCHEMA)}")
            table = file.read()
        if any(column.null_count for column in table.columns):
            raise ValueError("a row has null as hash, evidence or first_seen")
        return from_hex(table["hash"]), table
    except (pa.ArrowException, ValueError, OSError) as error:
        raise VlpipeError(
            f"{root.path(path)} cannot be read ({error}): it lists URLs that must not be fetched. Restore a copy of it; "
            "if you remove it, these URLs are fetched again"
        ) from error


def read_hashes(root: Store) -> Digests:
    """Returns the sorted unique hashes of all URLs that opted out. Files are read one at a time."""
    parts = [np.empty(0, DIGEST), *(read(root, name)[0] for name in part_names(root))]
    return np.unique(np.concatenate(parts))
