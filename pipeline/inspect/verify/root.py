"""The root's own files for `verify`: what was forgotten, who said no, the lock, and what only saves time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pyarrow.parquet as pq

from vlpipe.pipeline.engine.locking.lock_file import lock_files, parse
from vlpipe.pipeline.engine.plan import RECORD
from vlpipe.pipeline.engine.records import forgotten
from vlpipe.pipeline.engine.records.forget_journal import JOURNAL
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect import opted_out
from vlpipe.pipeline.inspect.verify.problems import Problem, read_or_problem
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.store import Store

HASH = re.compile(r"[0-9a-f]{64}")
KINDS = get_args(forgotten.Kind)
PART = re.compile(r"\d{6,}\.parquet")


def root_problems(store: Store) -> Iterator[Problem]:
    """Files of the root that are damaged; those of its steps aside."""
    checks: list[tuple[str, Callable[[Store, str], object]]] = [(forgotten.REL, _forgotten)]
    checks += [(f"{opted_out.REL}/{name}", _opted_out) for name in store.list(opted_out.REL)]
    checks += [(path, _lock) for path in lock_files(store)[-1:]]
    for path, read in checks:
        if store.exists(path):
            found = read_or_problem(path, lambda path=path, read=read: read(store, path))  # type: ignore[misc]
            if isinstance(found, Problem):
                yield found
    yield from _half_forgotten(store)
    yield from _time_savers(store)


def _half_forgotten(store: Store) -> Iterator[Problem]:
    """The plan of a forget that was killed: what lies in the root is half before and half after it."""
    if not store.exists(JOURNAL):
        return
    plan = read_or_problem(JOURNAL, lambda: _json_object(store, JOURNAL))
    yield (
        plan
        if isinstance(plan, Problem)
        else Problem(JOURNAL, "unfinished", "a forget was interrupted; `vlpipe run` finishes it")
    )


def _time_savers(store: Store) -> Iterator[Problem]:
    """Files that only save time or give reasons."""
    for path in (RECORD, *(f"_cache/{name}" for name in store.list("_cache"))):
        if store.exists(path):
            read = read_sealed if path == RECORD else _cache
            found = read_or_problem(path, lambda path=path, read=read: read(store, path), "made anew")  # type: ignore[misc]
            if isinstance(found, Problem):
                yield Problem(
                    path, "made anew", f"the next run does so; nothing depends on it ({found.text})"
                )


def _json_object(store: Store, path: str) -> dict[str, Any]:
    found = json.loads(store.read_bytes(path))
    if not isinstance(found, dict):
        raise VlpipeError(f"wanted a JSON object, it has {str(found)[:40]!r}")
    return found


def _cache(store: Store, path: str) -> None:
    """As `FileDigests` writes it: a text, and its checksum."""
    cache = _json_object(store, path)
    if hashlib.sha256(cache["files"].encode()).hexdigest() != cache["sha256"]:
        raise VlpipeError("its sha256 is not that of its text")


def _forgotten(store: Store, path: str) -> None:
    """As `add_forgotten` writes it: known kinds, whole hashes, sorted, each once."""
    with store.open(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(forgotten.SCHEMA):
        raise VlpipeError(f"wanted the columns kind and hash, it has {', '.join(table.schema.names)}")
    rows = [(row["kind"], row["hash"]) for row in table.to_pylist()]
    odd = next((row for row in rows if row[0] not in KINDS or not HASH.fullmatch(row[1] or "")), None)
    if odd or rows != sorted(set(rows)):
        raise VlpipeError(f"a line of it is none that vlpipe writes: {odd}" if odd else "it is not sorted")


def _opted_out(store: Store, path: str) -> None:
    name = path.rpartition("/")[2]
    if name.endswith(".part"):
        return
    if not PART.fullmatch(name):
        raise VlpipeError("wanted parts of Parquet such as 000000.parquet")
    with store.open(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(opted_out.SCHEMA):
        raise VlpipeError(
            f"wanted the columns {', '.join(opted_out.SCHEMA.names)}, it has {table.schema.names}"
        )
    if any(table[name].null_count for name in table.schema.names):
        raise VlpipeError("a line of it has no hash, no evidence or no time")
    odd = next((value for value in table["hash"].to_pylist() if not HASH.fullmatch(value)), None)
    if odd is not None:
        raise VlpipeError(f"{odd!r} is no hash")


def _lock(store: Store, path: str) -> None:
    if parse(store.read_bytes(path)) is None:
        raise VlpipeError("it names no run; the next run makes another")
