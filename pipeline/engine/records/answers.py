"""`<root>/answers/`: what servers answered about rows, recorded so that no stored question is asked again.

A stage that asks a server cannot promise the same bytes twice. So each answer is stored under (row id, hash of the request
without secrets). `_open/` has a segment for each shard in progress, to which answers are appended as they come; when the
shard is committed, its segment becomes a Parquet file. Only the driver writes here: it holds the root's lock.
Answers are not part of keys: finished shards stay valid if the folder is removed, but shards computed later ask again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.shard import open_parquet, write_shard
from vlpipe.pipeline.storage.store import Store

REL = "answers"
OPEN = f"{REL}/_open"
PART = re.compile(r"\d{6,}\.parquet")
SEGMENT = re.compile(
    r"([0-9a-f]{12})(-\d{6})?\.jsonl"
)  # several files with one name's start on object stores
GROUP_ROWS = 4096
Keys = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),  # `key_of` id and request, by which files are searched
        ("id", pa.string()),
        (
            "request",
            pa.string(),
        ),  # hash of all that determines the answer; no secrets, no address of the server
        (
            "url",
            pa.string(),
        ),  # of the row and its image, so that `vlpipe forget` finds them in this folder alone
        ("sha256", pa.string()),
        ("at", pa.int64()),  # seconds since 1970
        ("status", pa.int32()),  # of HTTP
        ("finish", pa.string()),  # finish_reason
        ("text", pa.string()),
        ("refusal", pa.string()),  # what the server said instead of an answer
        ("model", pa.string()),  # as the server names it
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("extra", pa.string()),  # JSON, such as log probabilities
    ]
)


class Answer(NamedTuple):
    """One recorded answer; the fields are the columns of SCHEMA without `key`."""

    id: str
    request: str
    url: str | None
    sha256: str | None
    at: int
    status: int
    finish: str | None
    text: str | None
    refusal: str | None
    model: str | None
    tokens_in: int
    tokens_out: int
    extra: str | None = None


def key_of(id_: str, request: str) -> int:
    """Returns the 64-bit hash of a row's id and a request. Two different ones may be equal: compare both texts as well."""
    digest = hashlib.blake2b(f"{id_} {request}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def line_of(answer: Iterable[object]) -> bytes:
    """Returns an answer as a line of a segment: CRC-32 of the rest, a space, the fields as a JSON list."""
    data = json.dumps([*answer], separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)


def answers_in(data: bytes) -> list[Answer]:
    """Returns the answers of a segment's bytes. Lines cut off by a kill or a power failure are skipped."""
    found = []
    for line in data.split(b"\n"):
        crc, _, rest = line.partition(b" ")
        if rest and crc == b"%08x" % zlib.crc32(rest):
            found.append(Answer(*json.loads(rest)))
    return found


def part_names(store: Store) -> list[str]:
    """Returns the names of the Parquet files, in order. Raises VlpipeError for a Parquet file with another kind of name."""
    names = [name for name in store.list(REL) if name.endswith(".parquet") and name[0] != "."]
    for name in names:
        if not PART.fullmatch(name):
            raise VlpipeError(
                f"{store.path(f'{REL}/{name}')} is not named like a file of answers (000000.parquet, ...); "
                "move it to another folder"
            )
    return sorted(names, key=lambda name: (len(name), name))


def part_paths(store: Store) -> list[str]:
    return [f"{REL}/{name}" for name in part_names(store)]


def number_of(name: str) -> int:
    return int(name.removesuffix(".parquet"))


def path_of(number: int) -> str:
    return f"{REL}/{number:06d}.parquet"


def write_part(store: Store, number: int, answers: Iterable[Answer]) -> Keys:
    """Writes a Parquet file of answers, sorted by id and request, and returns their keys. Of equals the first counts."""
    first: dict[tuple[str, str], Answer] = {}
    for one in answers:
        first.setdefault((one.id, one.request), one)
    rows = [first[key] for key in sorted(first)]
    keys = np.array([key_of(one.id, one.request) for one in rows], np.int64)
    columns: list[object] = [pa.array(keys), *([*column] for column in zip(*rows, strict=True))]
    table = pa.table(columns, schema=SCHEMA) if rows else SCHEMA.empty_table()
    write_shard(store, path_of(number), [table], SCHEMA, GROUP_ROWS)
    return keys


def read_keys(store: Store, number: int) -> Keys:
    """Returns the keys in a file. Raises VlpipeError if it is damaged."""
    with open_parquet(store, path_of(number)) as file:
        _need_schema(store, number, file.schema_arrow)
        return np.asarray(file.read(["key"])["key"], np.int64)


def read_part(store: Store, number: int) -> dict[tuple[str, str], Answer]:
    """Returns (id, request) -> answer of a file. Raises VlpipeError if it is damaged."""
    with open_parquet(store, path_of(number)) as file:
        _need_schema(store, number, file.schema_arrow)
        table = file.read().drop_columns(["key"])
    rows = zip(*(table[name].to_pylist() for name in Answer._fields), strict=True)
    return {(row[0], row[1]): Answer(*row) for row in rows}


def _need_schema(store: Store, number: int, found: pa.Schema) -> None:
    if found.names != SCHEMA.names:
        raise VlpipeError(
            f"{store.path(path_of(number))} has the columns {', '.join(found.names)}, not {', '.join(SCHEMA.names)}; "
            "it is no file of answers"
        )


def segments(store: Store) -> dict[str, list[str]]:
    """Returns segment -> its files, in order."""
    found: dict[str, list[str]] = {}
    for name in store.list(OPEN):
        if match := SEGMENT.fullmatch(name):
            found.setdefault(match[1], []).append(f"{OPEN}/{name}")
    return found


def recover(store: Store) -> int:
    """Makes Parquet files of the segments that a killed run left, and returns the number of their answers.

    The caller holds the root's lock, and nothing else writes answers.
    """
    store.sweep(REL)
    store.sweep(OPEN)
    number = next_number(store)
    num = 0
    for paths in segments(store).values():
        answers = [one for path in paths for one in answers_in(store.read_bytes(path))]
        if answers:
            write_part(store, number, answers)
            number += 1
            num += len(answers)
        for path in paths:
            store.remove(path)
    return num


def next_number(store: Store) -> int:
    """Returns the number of the next Parquet file."""
    names = part_names(store)
    return number_of(names[-1]) + 1 if names else 0


def with_rows(store: Store, ids: TextSet) -> Iterator[tuple[str, int]]:
    """Yields (path, number of answers) of the files with answers about rows in `ids`."""
    for path in part_paths(store):
        with open_parquet(store, path) as file:
            num = int(ids.mask(file.read(["id"])["id"]).sum())
        if num:
            yield path, num


def without_rows(store: Store, path: str, ids: TextSet) -> None:
    """Rewrites a file without the answers about rows in `ids`; removes it if none are left. Idempotent."""
    if not store.exists(path):
        return
    with open_parquet(store, path) as file:
        table = file.read()
    left = table.filter(pa.array(~ids.mask(table["id"])))
    if left.num_rows:
        write_shard(store, path, [left], SCHEMA, GROUP_ROWS)
    else:
        store.remove(path)


def num_bytes(store: Store) -> int:
    """Returns the size of all answers on disk."""
    return sum(store.sizes(REL).values()) + sum(store.sizes(OPEN).values())


def drop(store: Store) -> None:
    """Removes all answers. The caller holds the root's lock."""
    store.remove(REL)
