"""`<root>/opted_out/`: URLs that said no, by hash, with their words. What fetches into this root asks none of them again.

Opt-outs are not part of any key: finished shards are not fetched again. Remove the folder, and later fetches ask again.
Parts of Parquet; `stages.web.opted_out` writes them.
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
        ("hash", pa.string()),  # as in `forgotten.parquet`: of the canonical URL
        ("evidence", pa.string()),  # verbatim
        ("first_seen", pa.timestamp("ms", "UTC")),
    ]
)

Row = tuple[str, str, int]  # hash, evidence, ms since 1970


def hash_of_url(url: str) -> str:
    return hashed("url", canonical_url(url))


def part_names(root: Store) -> list[str]:
    """In order; a write may be under way. VlpipeError: a Parquet file with another name lies there."""
    names = [name for name in root.list(REL) if name.endswith(".parquet") and name[0] != "."]
    for name in names:
        if not re.fullmatch(r"\d{6,}\.parquet", name):
            raise VlpipeError(
                f"{root.path(f'{REL}/{name}')} is no part of a list of who said no: move it away"
            )
    return names


def read_part(root: Store, name: str) -> list[Row]:
    return rows_of(read(root, name)[1])


def rows_of(table: pa.Table) -> list[Row]:
    seen = table["first_seen"].cast(pa.int64())
    return list(
        zip(*(column.to_pylist() for column in (table["hash"], table["evidence"], seen)), strict=True)
    )


def read(root: Store, name: str) -> tuple[Digests, pa.Table]:
    """A part, and its hashes. VlpipeError where it is damaged: nobody may be asked again because of that."""
    path = f"{REL}/{name}"
    try:
        with root.open(path) as handle, pq.ParquetFile(handle) as file:
            if file.schema_arrow.remove_metadata() != SCHEMA:
                raise ValueError(f"it has the columns {', '.join(file.schema_arrow.names)}")
            table = file.read()
        if any(column.null_count for column in table.columns):
            raise ValueError("it has empty cells")
        return from_hex(table["hash"]), table
    except (pa.ArrowException, ValueError, OSError) as error:
        raise VlpipeError(
            f"{root.path(path)} cannot be read ({error}): it says which URLs asked not to be fetched. Put a copy of it "
            "back; without it, if you remove it, they are asked once more"
        ) from error


def read_hashes(root: Store) -> Digests:
    """Of all URLs that said no, sorted; one part at a time is read."""
    parts = [np.empty(0, DIGEST), *(read(root, name)[0] for name in part_names(root))]
    return np.unique(np.concatenate(parts))
