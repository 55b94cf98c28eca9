"""Checks the root's own files for `verify`: forgotten rows, opt-outs, the lock, an interrupted forget, caches."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pyarrow.parquet as pq

from vlpipe.pipeline.engine.locking.lock_file import lock_files, parse
from vlpipe.pipeline.engine.plan import RECORD
from vlpipe.pipeline.engine.records import answers, forgotten
from vlpipe.pipeline.engine.records.forget_journal import JOURNAL
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect import opted_out
from vlpipe.pipeline.inspect.forecast import RECORD as SAMPLE
from vlpipe.pipeline.inspect.opted_out import columns_of
from vlpipe.pipeline.inspect.verify.problems import Problem, read_or_problem
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.store import Store

HASH = re.compile(r"[0-9a-f]{64}")
KINDS = get_args(forgotten.Kind)
PART = re.compile(r"\d{6,}\.parquet")


def root_problems(store: Store) -> Iterator[Problem]:
    """Yields problems with files of the root that belong to no step."""
    checks: list[tuple[str, Callable[[Store, str], object]]] = [(forgotten.REL, _forgotten)]
    checks += [(f"{opted_out.REL}/{name}", _opted_out) for name in store.list(opted_out.REL)]
    checks += [(path, _answers) for path in answers.part_paths(store)]
    checks += [(path, _lock) for path in lock_files(store)[-1:]]
    for path, read in checks:
        if store.exists(path):
            found = read_or_problem(path, lambda path=path, read=read: read(store, path))  # type: ignore[misc]
            if isinstance(found, Problem):
                yield found
    yield from _half_forgotten(store)
    yield from _time_savers(store)


def _half_forgotten(store: Store) -> Iterator[Problem]:
    """Yields a problem if a forget was interrupted: some files of the root are already rewritten, others are not."""
    if not store.exists(JOURNAL):
        return
    plan = read_or_problem(JOURNAL, lambda: _json_object(store, JOURNAL))
    yield (
        plan
        if isinstance(plan, Problem)
        else Problem(JOURNAL, "unfinished", "a forget was interrupted; `vlpipe run` finishes it")
    )


def _time_savers(store: Store) -> Iterator[Problem]:
    """Yields a notice for each damaged cache. No result depends on caches: they save time or explain why a step runs."""
    for path in (RECORD, SAMPLE, *(f"_cache/{name}" for name in store.list("_cache"))):
        if store.exists(path):
            read = read_sealed if path in (RECORD, SAMPLE) else _cache
            found = read_or_problem(path, lambda path=path, read=read: read(store, path), "made anew")  # type: ignore[misc]
            if isinstance(found, Problem):
                yield Problem(
                    path,
                    "made anew",
                    f"the next run rewrites this cache; no result depends on it ({found.text})",
                )


def _json_object(store: Store, path: str) -> dict[str, Any]:
    found = json.loads(store.read_bytes(path))
    if not isinstance(found, dict):
        raise VlpipeError(f"the file contains {str(found)[:40]!r}, not a JSON object")
    return found


def _cache(store: Store, path: str) -> None:
    """Raises VlpipeError unless the file has the form that `FileDigests` writes: a text and its sha256."""
    cache = _json_object(store, path)
    if hashlib.sha256(cache["files"].encode()).hexdigest() != cache["sha256"]:
        raise VlpipeError("the recorded sha256 does not match the content of the file")


def _forgotten(store: Store, path: str) -> None:
    """Raises VlpipeError unless the file is as `add_forgotten` writes it: (kind, hash) rows, sorted and distinct."""
    with store.open(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(forgotten.SCHEMA):
        raise VlpipeError(f"its columns are {columns_of(table.schema)}, not {columns_of(forgotten.SCHEMA)}")
    rows = [(row["kind"], row["hash"]) for row in table.to_pylist()]
    odd = next((row for row in rows if row[0] not in KINDS or not HASH.fullmatch(row[1] or "")), None)
    if odd or rows != sorted(set(rows)):
        raise VlpipeError(
            f"the file has an invalid row: {odd}"
            if odd
            else "the rows of the file are not sorted and distinct"
        )


def _opted_out(store: Store, path: str) -> None:
    name = path.rpartition("/")[2]
    if name.endswith(".part"):
        return
    if not PART.fullmatch(name):
        raise VlpipeError("the file is not named like 000000.parquet; move it to another folder")
    with store.open(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(opted_out.SCHEMA):
        raise VlpipeError(f"its columns are {columns_of(table.schema)}, not {columns_of(opted_out.SCHEMA)}")
    if any(table[name].null_count for name in table.schema.names):
        raise VlpipeError("a row has null as hash, evidence or first_seen")
    odd = next((value for value in table["hash"].to_pylist() if not HASH.fullmatch(value)), None)
    if odd is not None:
        raise VlpipeError(f"the hash {odd!r} does not consist of 64 hexadecimal digits")


def _answers(store: Store, path: str) -> None:
    with store.open(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if table.schema.names != answers.SCHEMA.names:
        raise VlpipeError(f"its columns are {columns_of(table.schema)}, not {columns_of(answers.SCHEMA)}")
    if table["id"].null_count or table["request"].null_count:
        raise VlpipeError("an answer has no id or no request")


def _lock(store: Store, path: str) -> None:
    if parse(store.read_bytes(path)) is None:
        raise VlpipeError(
            "the lock file does not name the run that holds the root; the next run writes another lock file"
        )
