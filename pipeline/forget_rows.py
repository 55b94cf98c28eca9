"""Take forgotten rows out of a table, a shard's rejects, its log: the same rule for every file a step wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.forget_list import Wanted
from vlpipe.pipeline.forget_taken import DONORS, Taken, has_donors, may_have_words, take_back
from vlpipe.pipeline.receipt import read_rejects, write_rejects
from vlpipe.pipeline.shard import Reject, Shard, open_parquet, write_shard
from vlpipe.pipeline.store import Store

SOMEONE = "a forgotten row"  # in place of its id, in the record of another row
SOMETHING = "a forgotten text"
URLS = ("url", "final_url")


@dataclass(frozen=True)
class Gone:
    """ids: all rows to forget. urls (canonical), domains: for files whose rows have no id, such as a list. taken: what
    rows that stay have from them."""

    ids: frozenset[str]
    urls: frozenset[str]
    domains: frozenset[str]
    taken: Taken = field(default_factory=dict)

    @cached_property
    def _ids(self) -> pa.Array:
        return pa.array(sorted(self.ids), pa.string())

    @cached_property
    def wanted(self) -> Wanted:
        return Wanted(id=self.ids, url=self.urls, domain=self.domains, sha256=frozenset())

    def names(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.is_in(column.cast(pa.string()), value_set=self._ids)

    def scrub(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The table without these rows, and how many went; the same object when there is nothing to do.

        With an `id`: the rows of these ids and their children go, where another row names one of them (a twin's
        witness) there is null, and what it took from them goes. Without: rows that name one of them, or have such a
        url, go.
        """
        texts = [
            f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
        ]
        own = [n for n in ("id", "parent") if n in texts] if "id" in texts else texts
        out = pa.chunked_array([pa.array([False] * table.num_rows, pa.bool_())])
        for name in own:
            out = pc.or_(out, self.names(table[name]))
        if "id" not in texts:
            for name in (n for n in URLS if n in texts):
                mask = [self.wanted.has_url(url) for url in table[name].to_pylist()]
                out = pc.or_(out, pa.chunked_array([pa.array(mask, pa.bool_())]))
        num_gone = pc.sum(out).as_py() or 0
        if num_gone:
            table = table.filter(pc.invert(out))
        for name in texts if "id" in texts else ():
            named = self.names(table[name])
            if pc.any(named).as_py():
                at, kind = table.schema.get_field_index(name), table.schema.field(name)
                table = table.set_column(at, kind, pc.if_else(named, pa.scalar(None, kind.type), table[name]))
        return (take_back(table, self.ids, self.taken) if "id" in texts else table), num_gone

    def heirs(self, table: pa.Table) -> set[str]:
        """Ids of rows that stay and took something."""
        return self.taken.keys() & set(table["id"].to_pylist()) if self.taken else set()

    def scrub_text(self, text: str, id_: str = "") -> str:
        """Ids in a sentence (of the row `id_`), each replaced whole, and what that row took."""
        for words in self.taken.get(id_, ()):
            text = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", SOMETHING, text)
        return re.sub(r"[^\s,;()]+", lambda m: SOMEONE if m[0] in self.ids else m[0], text)

    def is_in(self, line: Any) -> bool:
        """Does a line of a log speak of one of these rows?"""
        if isinstance(line, dict):
            taken = self.taken.get(line["id"], ()) if isinstance(line.get("id"), str) else ()
            return any(self.is_in(v) or (isinstance(v, str) and v in taken) for v in line.values())
        if isinstance(line, list):
            return any(self.is_in(v) for v in line)
        return isinstance(line, str) and (line in self.ids or ("://" in line and self.wanted.has_url(line)))


@dataclass(kw_only=True)
class Seen:
    """Of a Parquet file: forgotten ids that are its rows, rows that took something, whether anything would change."""

    ids: set[str] = field(default_factory=set)
    heirs: set[str] = field(default_factory=set)
    changes: bool = False


def looked_at(store: Store, path: str, gone: Gone) -> Seen:
    seen = Seen()
    with open_parquet(store, path) as file:
        schema = file.schema_arrow
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        more = [f.name for f in schema if may_have_words(f) and f.name not in texts] if "id" in texts else []
        donors = [DONORS] if has_donors(schema) else []
        for group in range(file.num_row_groups if texts else 0):
            table = file.read_row_group(group, columns=[*texts, *donors])
            heirs = gone.heirs(table) if "id" in texts else set()
            if heirs:  # few: of the others the texts are not read
                table = file.read_row_group(group, columns=[*texts, *more])
            left, num_gone = gone.scrub(table)
            if num_gone and "id" in texts:
                seen.ids |= set(table["id"].to_pylist()) - set(left["id"].to_pylist())
            seen.changes = seen.changes or left is not table
            if heirs and take_back(table, gone.ids, gone.taken) is not table:
                seen.heirs |= heirs
    return seen


def rewrite(store: Store, path: str, gone: Gone, stats: dict[str, dict[str, Any]]) -> Shard:
    """The same file without these rows. Done twice it is what it was after the first time."""
    with open_parquet(store, path) as file:
        groups = file.num_row_groups
        group_rows = file.metadata.row_group(0).num_rows if groups else 1
        tables = (gone.scrub(file.read_row_group(group))[0] for group in range(groups))
        schema = pa.schema([f.with_type(_declared(f.type)) for f in file.schema_arrow])
        return write_shard(store, path, tables, schema, group_rows, stats)


def _declared(kind: pa.DataType) -> pa.DataType:
    """The type as stages declare it: of lists of lists a reader names what is in them `element`, and pyarrow `item`."""
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_declared(f.type)) for f in kind])
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        inner = kind.value_field.with_name("item").with_type(_declared(kind.value_type))
        return pa.list_(inner, kind.list_size if pa.types.is_fixed_size_list(kind) else -1)
    return kind


def rejects_left(store: Store, folder: str, index: int, gone: Gone) -> tuple[list[Reject], int, bool]:
    """A shard's rejects without those of these rows; how many went; whether anything changed."""
    rows = read_rejects(store, folder, index).drop_columns(["stage"]).to_pylist()
    left = [{**r, "detail": gone.scrub_text(r["detail"], r["id"])} for r in rows if r["id"] not in gone.ids]
    return [Reject(**r) for r in left], len(rows) - len(left), left != rows


def rewrite_rejects(store: Store, folder: str, index: int, gone: Gone) -> tuple[dict[str, int], str]:
    """Returns them by code, as a receipt has them, and the digest of the file."""
    stages = read_rejects(store, folder, index)["stage"]
    left, _, _ = rejects_left(store, folder, index, gone)
    return write_rejects(store, folder, index, stages[0].as_py() if left else "", left)


def log_lines(store: Store, path: str, gone: Gone) -> tuple[list[str], int]:
    """The lines of a log that may stay, and how many may not; what a step said (`.txt`) stays without the ids."""
    lines = store.read_bytes(path).decode().splitlines()
    if path.endswith(".txt"):
        scrubbed = [gone.scrub_text(line) for line in lines]
        return scrubbed, sum(new != old for new, old in zip(scrubbed, lines, strict=True))
    left = [line for line in lines if not gone.is_in(json.loads(line))]
    return left, len(lines) - len(left)


def rewrite_log(store: Store, path: str, gone: Gone) -> None:
    left, _ = log_lines(store, path, gone)
    if left:
        store.write_bytes(path, "".join(f"{line}\n" for line in left).encode(), sync_folder=False)
    else:
        store.remove(path)


def ids_in(store: Store, path: str, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    """(id, kind, value) for each row of a shard that an entry of the list names."""
    with open_parquet(store, path) as file:
        names = [n for n in ("id", "sha256", *URLS) if n in file.schema_arrow.names]
        for group in range(file.num_row_groups if "id" in names else 0):
            table = file.read_row_group(group, columns=names)
            yield from _named(table, wanted)


def _named(table: pa.Table, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    ids = table["id"].to_pylist()
    yield from ((id_, "id", id_) for id_ in ids if id_ in wanted.id)
    if wanted.sha256 and "sha256" in table.schema.names:
        found = zip(ids, table["sha256"].to_pylist(), strict=True)
        yield from ((id_, "sha256", value) for id_, value in found if value in wanted.sha256)
    for name in URLS if wanted.url or wanted.domain or wanted.opted_out else ():
        if name in table.schema.names:
            for id_, url in zip(ids, table[name].to_pylist(), strict=True):
                yield from ((id_, kind, value) for kind, value in wanted.matches(url))


def with_digest(shard: Shard, made: Shard) -> Shard:
    return replace(shard, digest=made.digest, num_rows=made.num_rows)
