"""Checks image bytes against the `sha256` of their row when they leave the engine. Costs 0.05 ms per image of 60 KB."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError

BYTES, DIGEST = "image", "sha256"
HEX = re.compile(r"[0-9a-fA-F]{64}")


def checked(table: pa.Table, where: str) -> pa.Table:
    """Returns the table unchanged. Raises VlpipeError if a row's `image` does not match its `sha256`.

    No check if a column `id`, `image` or `sha256` is missing. where: prefix of the error text.
    """
    if {"id", BYTES, DIGEST} <= {*table.schema.names}:
        columns = (table[name].to_pylist() for name in ("id", BYTES, DIGEST))
        for id_, data, digest in zip(*columns, strict=True):
            check_row(id_, data, digest, where)
    return table


def check_all(ids: Sequence[str], datas: Sequence[bytes], digests: Sequence[str | None], where: str) -> None:
    """Calls `check_row` for each row."""
    for one in zip(ids, datas, digests, strict=True):
        check_row(*one, where)


def check_row(id_: str, data: bytes | None, digest: str | None, where: str) -> None:
    """Raises VlpipeError if sha256(data) is not `digest`. No check if either is None or `digest` is not a sha256.

    where: prefix of the error text.
    """
    if data is None or digest is None or not HEX.fullmatch(digest):
        return  # nothing to compare, or a column named `sha256` that holds something else
    if hashlib.sha256(data).hexdigest() == digest.lower():
        return
    raise VlpipeError(
        f"{where}, row {id_}: its {BYTES} does not match the row's sha256, so a file was damaged since; "
        "`vlpipe verify` lists which"
    )
