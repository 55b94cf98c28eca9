"""Shards: Parquet files with the rows of a step. `ShardWriter` writes them, and the files of rejected rows beside them.

The same rows give the same bytes: a shard is cast to its declared schema, its chunks are combined, and it is cut into row
groups by a rule that depends on the rows alone (`row_groups`). Without this, tables chunked differently give other bytes.
Heavy columns (image bytes, features) are written once, by the step that makes them. Later shards store the light (other)
columns and a pointer (`Shard.heavy`) to the file with the heavy ones, which are joined by `id` when a stage reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean
from vlpipe.pipeline.parquet.column_stats import count_in
from vlpipe.pipeline.parquet.conform import conform
from vlpipe.pipeline.parquet.file import Parquet
from vlpipe.pipeline.parquet.footer import footer_digest
from vlpipe.pipeline.parquet.heavy_join import HeavyJoin
from vlpipe.pipeline.parquet.image_files import IMAGE, as_stored, image_names, stored_schema
from vlpipe.pipeline.parquet.references import ref as ref
from vlpipe.pipeline.parquet.references import reference_columns as reference_columns
from vlpipe.pipeline.parquet.references import without_refs
from vlpipe.pipeline.parquet.row_conservation import check_conserved as check_conserved
from vlpipe.pipeline.parquet.row_groups import MAX_BYTES, joined_up, num_fitting
from vlpipe.pipeline.storage.store import Store, sha256_of

# Statistics and dictionaries are off because both depend on writer state. zstd saves the space that dictionaries would.
SETTINGS = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
ROW_GROUP_ROWS = 512  # 512 images of 60 KB are 32 MB
# The writer checks every PAGE_ROWS rows whether a page has reached 1 MB. By default it checks once per row group, which
# gives pages and buffers of 32 MB that are freed and allocated again (for images of 48 KB: 75 MB more memory, and 0.19
# instead of 0.09 ms per image).
PAGE_ROWS = 32
SEE_VERIFY = "; `vlpipe verify` lists what is damaged"
HEAVY = b"vlpipe.heavy"


class Heavy(NamedTuple):
    """A heavy column, the path of the shard that holds it, and the sha256 of that shard and of its footer."""

    column: str
    path: str
    digest: str
    footer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A finished Parquet file.

    path: relative to the root; digest: sha256 of the file; footer: sha256 of the Parquet footer; key: hash of what the
    shard was made from; heavy: the file of each heavy column, which is this file or one that is joined by `id`.
    """

    path: str
    num_rows: int
    digest: str
    footer: str = ""
    key: str = ""
    heavy: tuple[Heavy, ...] = ()

    def holder(self, column: str) -> Shard | Heavy:
        """Returns the shard that stores `column`: this one, or the one a heavy column is joined from."""
        return next((one for one in self.heavy if one.column == column and one.path != self.path), self)

    def heavy_digests(self, columns: Iterable[str]) -> dict[str, str]:
        """Returns column -> digest of the shard that holds it, for those of `columns` stored in another file."""
        wanted = set(columns)
        return {
            one.column: one.digest for one in self.heavy if one.column in wanted and one.path != self.path
        }


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not in the output, and why. kind: `fault` if processing failed, `filtered` if a rule excluded it."""

    id: str
    kind: Literal["fault", "filtered"]
    why: str  # a short code: http_404, truncated, duplicate
    detail: str = ""


REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "stage", "kind", "why", "detail")])


@dataclass(slots=True)
class Out:
    """What a stage's function returns for a batch: output rows, rejected rows, and lines for the shard's log.

    counts: extra counters, summed over batches and shards and stored in the receipt.
    """

    table: pa.Table
    rejects: list[Reject] = field(default_factory=list)
    # Lines for the log, each a JSON object. They may contain times and numbers of attempts, and are never part of keys.
    log: list[dict[str, Any]] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


def joined(parts: Sequence[Out]) -> Out:
    """Returns consecutive outputs, at least one, as one."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    return Out(
        pa.concat_tables([part.table for part in parts]),
        [reject for part in parts for reject in part.rejects],
        [line for part in parts for line in part.log],
        counts,
    )


def heavy(name: str, dtype: pa.DataType, *, is_image: bool = False) -> pa.Field:
    """Returns the field of a heavy column: written once by the step that makes it, later joined by `id`.

    is_image: its values, of type binary, are encoded image files, which other tools then show as pictures (`image_files`).
    """
    return pa.field(name, dtype, metadata={HEAVY: b"1"} | ({IMAGE: b"1"} if is_image else {}))


def is_heavy(f: pa.Field) -> bool:
    return bool(f.metadata and HEAVY in f.metadata)


def heavy_names(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema if is_heavy(f)]


def need(schema: pa.Schema, who: str, **columns: pa.DataType) -> None:
    """Raises SchemaError unless `schema` has each of `columns` with its type. who: the reader named in the error."""
    for name, dtype in columns.items():
        if name not in schema.names:
            raise SchemaError(
                f"{who} reads column {name!r}, which its input does not have{did_you_mean(name, schema.names)}"
            )
        if schema.field(name).type != dtype:
            raise SchemaError(f"{who} reads column {name!r} as {dtype}, but it is {schema.field(name).type}")


def with_field(schema: pa.Schema, new: pa.Field) -> pa.Schema:
    """Returns `schema` with field `new` added, or replaced if the name exists.

    Raises SchemaError if both are heavy: rows keep the heavy column that they have, which an earlier step stores.
    """
    at = schema.get_field_index(new.name)
    if at >= 0 and is_heavy(new) and is_heavy(schema.field(at)):
        why = f"the rows have a heavy column {new.name!r} from an earlier step already, and it cannot be replaced"
        raise SchemaError(f"{why}; take the rows from a step before that one")
    return schema.append(new) if at < 0 else schema.set(at, new)


class ShardWriter:
    """Writes one shard in row groups of at most `row_group_rows` rows and `MAX_BYTES` bytes, or of one larger row."""

    def __init__(
        self,
        path: str,
        schema: pa.Schema,
        row_group_rows: int = ROW_GROUP_ROWS,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        # Metadata of light fields is dropped: it belongs to the plan. A heavy field keeps its metadata in its shard.
        self.schema = pa.schema(
            [
                without_refs(f).with_metadata(dict(sorted(f.metadata.items())) if is_heavy(f) else None)
                for f in schema
            ]
        )
        self.row_group_rows = row_group_rows
        self.num_rows = 0
        self.stats: dict[str, dict[str, Any]] = {f.name: {"nulls": 0} for f in self.schema}
        self._pending: list[pa.Table] = []
        self._num_pending = self._bytes_pending = 0
        self._images = image_names(self.schema)
        stored = stored_schema(self.schema.with_metadata(notes or None), self._images)
        self._writer = pq.ParquetWriter(path, stored, write_batch_size=PAGE_ROWS, **SETTINGS)

    def write(self, table: pa.Table) -> None:
        """Adds rows. Raises SchemaError or ValueError if they do not conform to the schema (see `conform`)."""
        if not table.num_rows:
            return
        table = conform(table, self.schema, self.path)
        self._count(table)
        self._pending.append(table)
        self._num_pending += table.num_rows
        self._bytes_pending += table.nbytes
        if self._num_pending >= self.row_group_rows or self._bytes_pending >= MAX_BYTES:
            self._flush(final=False)

    def _flush(self, *, final: bool) -> None:
        """Writes all full row groups; with `final`, the last partial one too."""
        if not self._pending:
            return
        table, start = pa.concat_tables(self._pending), 0
        while start < table.num_rows:
            rows = table.slice(start, self.row_group_rows)
            num = num_fitting(rows)
            if num == rows.num_rows < self.row_group_rows and not final:
                break  # more rows may fit
            whole = as_stored(rows.slice(0, num).combine_chunks(), self._images)
            self._writer.write_table(whole, row_group_size=num)
            start += num
        rest = table.slice(start)
        self._pending = [rest] if rest.num_rows else []
        self._num_pending, self._bytes_pending = rest.num_rows, rest.nbytes
        self.num_rows += start

    def _count(self, table: pa.Table) -> None:
        """Updates `stats`, see `count_in`."""
        for f in self.schema:
            count_in(self.stats[f.name], table[f.name])

    def close(self) -> None:
        self._flush(final=True)
        self._writer.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self._writer.close()


def write_shard(
    store: Store,
    rel: str,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    row_group_rows: int = ROW_GROUP_ROWS,
    stats: dict[str, dict[str, Any]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Shard:
    """Writes tables as one shard, atomically, and returns it without `key` and `heavy`, which the caller adds.

    stats: if given, updated with the statistics of each column, see `count_in`. notes: metadata of the file's schema.
    """
    with store.writing(rel, sync_folder=False) as part:
        with ShardWriter(part, schema, row_group_rows, notes) as writer:
            for table in tables:
                writer.write(table)
        with open(part, "rb", buffering=0) as file:
            footer = footer_digest(file)
            file.seek(0)
            digest = sha256_of(file)
    if stats is not None:
        stats.update(writer.stats)
    return Shard(path=rel, num_rows=writer.num_rows, digest=digest, footer=footer)


@contextmanager
def open_parquet(store: Store, rel: str) -> Iterator[Parquet]:
    """Opens any Parquet file below the root. Raises VlpipeError if it is missing or unreadable."""
    with _opened(store, rel) as handle:
        yield Parquet(handle, store.path(rel))


@contextmanager
def open_shard(store: Store, shard: Shard | Heavy) -> Iterator[Parquet]:
    """Opens a shard. Raises VlpipeError if it is missing or its footer has changed; damaged pages raise it when read."""
    with _opened(store, shard.path, shard.digest) as handle:
        if shard.footer:
            _check_footer(handle, store.path(shard.path), shard.footer)
        yield Parquet(handle, store.path(shard.path))


def _check_footer(handle: IO[bytes], name: str, footer: str) -> None:
    try:
        if footer_digest(handle) != footer:
            raise ValueError("its footer has changed")
    except ValueError as error:
        raise VlpipeError(f"shard {name} cannot be read ({error}){SEE_VERIFY}") from error
    handle.seek(0)


@contextmanager
def _opened(store: Store, rel: str, digest: str = "") -> Iterator[IO[bytes]]:
    """Opens a file below the root; a local one as pa.OSFile, which reads in C++ without taking the GIL.

    digest: sha256 of a shard, of which the store may have a copy on this node's disk.
    """
    try:
        path = store.local_path(rel, digest)
        handle: IO[bytes] = pa.OSFile(path) if path else store.open(rel)
    except FileNotFoundError as error:
        raise VlpipeError(f"shard {store.path(rel)} is missing{SEE_VERIFY}") from error
    with handle:
        yield handle


def read_batches(
    store: Store, shard: Shard, columns: Sequence[str] | None = None, want_heavy: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yields a shard's row groups in order.

    columns: light columns to read, None for all; want_heavy: heavy columns to join by `id`. A row group whose joined
    columns exceed `row_groups.MAX_BYTES` is yielded as several tables. Raises SchemaError if a heavy column is unknown.
    """
    pointers = {one.column: one for one in shard.heavy}
    with open_shard(store, shard) as file:
        own = file.schema_arrow
        unknown = [n for n in want_heavy if n not in own.names and n not in pointers]
        if unknown:
            raise SchemaError(
                f"shard {shard.path} has no heavy column(s) {', '.join(unknown)} and no pointer to a shard that holds them, "
                "but a stage asks for them (READS_HEAVY or want_heavy)"
            )
        light = [n for n in own.names if not is_heavy(own.field(n))] if columns is None else list(columns)
        stored = list(dict.fromkeys([*light, *(n for n in want_heavy if n in own.names)]))
        joined = {n: pointers[n] for n in want_heavy if n not in own.names}
        read = stored if not joined or "id" in stored else ["id", *stored]
        with ExitStack() as stack:
            joins = _joins(store, joined, stack)
            for group in range(file.num_row_groups):
                pieces: Iterable[pa.Table] = [file.read_row_group(group, columns=read, use_threads=False)]
                for join in joins:
                    pieces = chain.from_iterable(map(join.add, pieces))
                for table in joined_up(pieces) if joins else pieces:
                    yield table.select([*stored, *joined])


def _joins(store: Store, joined: Mapping[str, Heavy], stack: ExitStack) -> list[HeavyJoin]:
    by_shard: dict[tuple[str, str], list[str]] = {}
    for name, one in joined.items():
        by_shard.setdefault((one.path, one.footer), []).append(name)
    return [
        HeavyJoin(stack.enter_context(open_shard(store, Heavy("", path, "", footer))), path, names)
        for (path, footer), names in by_shard.items()
    ]
