"""JSON records whose first line holds the sha256 of the rest of the file, so that damage is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vlpipe.pipeline.storage.store import Store, canonical_json

HEAD, DIGITS = b'{"sha256": "', 64
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False).encode
BODY = len(HEAD) + DIGITS + len(b'",\n')  # offset of the part that is hashed


def sealed(value: Mapping[str, Any], *, one_line_per_key: bool = False) -> bytes:
    """Returns the bytes of a record: `value` as a JSON object with an additional first key `sha256`.

    one_line_per_key: each value on one line, for records of which there are many: ten times as fast, as only Python code
    can indent.
    """
    if one_line_per_key:
        lines = (f" {_encode(key)}: {_encode(value[key])}" for key in sorted(value))
        rest = (",\n".join(lines) + "\n}\n").encode()
    else:
        rest = canonical_json(value).removeprefix(b"{\n")
    return HEAD + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest


def unsealed(data: bytes) -> dict[str, Any]:
    """Returns the value of a record. Raises ValueError if its bytes are not those that were written."""
    if not data.startswith(HEAD):
        json.loads(data)  # if it is not JSON at all, this raises a clearer error
        raise ValueError("the file does not begin with a sha256")
    if hashlib.sha256(data[BODY:]).hexdigest().encode() != data[len(HEAD) : len(HEAD) + DIGITS]:
        raise ValueError("the sha256 in the file does not match its content")
    value: dict[str, Any] = json.loads(data)
    del value["sha256"]
    return value


def write_sealed(store: Store, rel: str, value: Mapping[str, Any]) -> None:
    store.write_bytes(rel, sealed(value))


def read_sealed(store: Store, rel: str) -> dict[str, Any]:
    """Returns the value of the record at `rel`. Raises ValueError if it is damaged."""
    return unsealed(store.read_bytes(rel))
