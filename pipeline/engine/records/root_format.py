"""The format number of a root, `_format.json`: a root with another number than this vlpipe writes is refused."""

from __future__ import annotations

from typing import Any

from vlpipe.pipeline.engine.records.receipts import damaged
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

FORMAT = 2  # format number of roots: raise it when the engine reads or writes them differently
FORMAT_FILE = "_format.json"


def check_format(store: Store, old: bool) -> None:
    """Raises VlpipeError if the root has another format. old: it has step folders, so a missing number means format 1."""
    if not store.exists(FORMAT_FILE):
        number: Any = 1 if old else FORMAT
    else:
        try:
            number = store.read_json(FORMAT_FILE)["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(store, FORMAT_FILE, error) from error
    if number != FORMAT:
        raise VlpipeError(
            f"{store.url} has format {number}, this vlpipe reads and writes format {FORMAT}: "
            f"use another --root, or the vlpipe that wrote it"
        )


def write_format(store: Store) -> None:
    if not store.exists(FORMAT_FILE):
        store.write_json(FORMAT_FILE, {"format": FORMAT})
