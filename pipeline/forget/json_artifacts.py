"""Removes forgotten rows from JSON artifacts: list items that are objects with the `id` of a forgotten row, and texts
copied from forgotten rows, in lists inside an object with the `id` of the row that copied them.

Other strings are kept even if they equal an id: ids may be short words, and a vocabulary contains many words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Set
from typing import Any

from vlpipe.pipeline.forget.rows import ForgottenRows
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.store import Store, canonical_json


def names_rows(store: Store, path: str, gone: ForgottenRows) -> bool:
    """True if `rewrite_json` would change the file."""
    value = _read(store, path)
    return _scrubbed(value, gone) != value


def rewrite_json(store: Store, path: str, gone: ForgottenRows) -> Shard:
    """Rewrites the file without forgotten rows and returns its record with the new digest. Idempotent."""
    data = canonical_json(_scrubbed(_read(store, path), gone))
    store.write_bytes(path, data, sync_folder=False)
    return Shard(path=path, num_rows=0, digest=hashlib.sha256(data).hexdigest())


def _read(store: Store, path: str) -> Any:
    """Returns the parsed file; None if it is not valid JSON or contains NaN or infinity, which vlpipe never writes."""
    try:
        return json.loads(store.read_bytes(path), parse_constant=_refused)
    except ValueError:
        return None


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _scrubbed(value: Any, gone: ForgottenRows) -> Any:
    return _without(value, gone.ids.known(set(_ids(value))), gone, frozenset())


def _ids(value: Any) -> Iterator[str]:
    """Yields the `id` of all objects in a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get("id"), str):
            yield value["id"]
        for one in value.values():
            yield from _ids(one)
    elif isinstance(value, list):
        for one in value:
            yield from _ids(one)


def _without(value: Any, ids: Set[str], gone: ForgottenRows, words: frozenset[str]) -> Any:
    """Returns the value without forgotten rows. words: copied texts of the row with the closest enclosing `id`."""
    if isinstance(value, dict):
        words = gone.taken.get(value["id"], words) if isinstance(value.get("id"), str) else words
        return {name: _without(one, ids, gone, words) for name, one in value.items()}
    if isinstance(value, list):
        return [_without(one, ids, gone, words) for one in value if not _is_gone(one, ids, words)]
    return value


def _is_gone(one: Any, ids: Set[str], words: frozenset[str]) -> bool:
    if isinstance(one, dict):
        return isinstance(one.get("id"), str) and one["id"] in ids
    return isinstance(one, str) and one in words
