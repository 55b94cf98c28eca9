"""Removes forgotten rows from tables, rejects and logs, by the same rules for every file that a step wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.rejects import read_rejects, write_rejects
from vlpipe.pipeline.forget.copied_texts import (
    DONORS,
    CopiedTexts,
    forgotten_donors,
    has_donors,
    may_have_words,
    take_back,
)
from vlpipe.pipeline.forget.references import Reference, ids_of, references_in, rows_naming, without_ids
from vlpipe.pipeline.forget.sentences import SOMEONE, known_names, names_in, strings_in, without_names
from vlpipe.pipeline.forget.urls import Urls
from vlpipe.pipeline.parquet.block_reads import blocks
from vlpipe.pipeline.parquet.text_sets import Mask, Places, TextSet
from vlpipe.pipeline.shard import Reject, Shard, open_parquet, write_shard
from vlpipe.pipeline.storage.store import Store

SOMETHING = "a forgotten text"
URLS = ("url", "final_url")
ORPHAN = f"duplicate of {SOMEONE}"  # in details of rejects
# Matches details of rejects that may name a row or a URL. Most do not, and are not parsed.
NAMING_DETAIL = r"\brow |(duplicate|twin) of |://|[^\s,;()]{16}"


@dataclass(frozen=True, eq=False)
class ForgottenRows:
    """The rows to forget. ids: of all of them; urls: for files whose rows have no id, such as a list; taken: texts that
    other rows copied from them."""

    ids: TextSet
    urls: Urls = field(default_factory=Urls)
    taken: CopiedTexts = field(default_factory=dict)

    @cached_property
    def _heirs(self) -> TextSet:
        return TextSet.of("id", self.taken)

    @cached_property
    def with_heirs(self) -> TextSet:
        """The ids, and those of rows that copied a text from them: what was asked about these may hold the text."""
        return self.ids | self._heirs

    def rows(self, table: pa.Table, refs: Collection[Reference]) -> Mask:
        """Returns a mask of the forgotten rows, (num_rows,) bool.

        In a table with an `id`: rows with a forgotten id, their children, and rows that copied something from them. In one
        without: rows with a forgotten id as parent or in a reference column of single ids, or with a forgotten url.
        """
        names = table.schema.names
        own = [n for n in ("id", "parent") if n in names and _is_text(table.schema.field(n).type)]
        own += [r.column for r in refs if r.is_origin and not r.fields]
        out = np.zeros(table.num_rows, np.bool_)
        for name in own if has_id(table.schema) else [*own, *(r.column for r in refs if r.is_single)]:
            out |= rows_naming(table[name], self.ids)
        for name in () if has_id(table.schema) else _urls_of(table.schema):
            out |= self.urls.mask(table[name])
        return out

    def scrub(self, table: pa.Table, refs: Collection[Reference]) -> tuple[pa.Table, int]:
        """Returns (table without forgotten rows, number of removed rows); the same table object if nothing changes.

        In the remaining rows, references to forgotten rows (the witness of a duplicate, say) become null or are removed
        from their list, and texts copied from forgotten rows are removed.
        """
        out = self.rows(table, refs)
        num_gone = int(out.sum())
        if num_gone:
            table = table.filter(pa.array(~out))
        if has_id(table.schema):
            table = take_back(table, self.ids, self.taken)
        for ref in refs:
            table = without_ids(table, ref, self.ids)
        return table, num_gone

    def heirs(self, ids: pa.ChunkedArray) -> set[str]:
        """Returns those of `ids` whose rows copied a text from a forgotten row."""
        return set(ids.filter(pa.array(self._heirs.mask(ids))).to_pylist()) if self.taken else set()

    def scrub_texts(self, texts: Iterable[str], ids: Iterable[str] = ()) -> list[str]:
        """Returns sentences without forgotten ids, URLs and copied texts. ids: row id of each sentence, to find the texts
        that the row copied; without ids, copied texts stay."""
        listed = list(texts)
        for n, id_ in enumerate(ids if self.taken else ()):
            for words in self.taken.get(id_, ()):
                listed[n] = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", SOMETHING, listed[n])
        known = known_names(listed, self.ids, self.urls)
        return [without_names(text, known) for text in listed]

    def in_lines(self, lines: list[Any]) -> list[bool]:
        """Returns for each parsed log line whether it contains a forgotten id or URL, or a text that its row copied."""
        names = [set(names_in(line)) for line in lines]
        every = set().union(*names)
        known = self.ids.known(every) | self.urls.known([name for name in every if "://" in name])
        return [not known.isdisjoint(n) or self._tells(line) for n, line in zip(names, lines, strict=True)]

    def _tells(self, line: Any) -> bool:
        id_ = line.get("id") if isinstance(line, dict) and self.taken else None
        words = self.taken.get(id_, ()) if isinstance(id_, str) else ()
        return bool(words) and any(text in words for _, text in strings_in(line))


def has_id(schema: pa.Schema) -> bool:
    """True if the schema has an `id` column of strings."""
    return "id" in schema.names and _is_text(schema.field("id").type)


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _urls_of(schema: pa.Schema) -> list[str]:
    return [n for n in URLS if n in schema.names and _is_text(schema.field(n).type)]


@dataclass(kw_only=True)
class RowMatches:
    """Forgotten rows in one Parquet file. ids: positions in `ForgottenRows.ids`; heirs: ids of rows that copied a text from
    them; changes: whether the file must be rewritten."""

    ids: list[Places] = field(default_factory=list)
    heirs: set[str] = field(default_factory=set)
    changes: bool = False


def looked_at(store: Store, path: str, gone: ForgottenRows, declared: Collection[str]) -> RowMatches:
    """Returns the forgotten rows in a file. Reads only columns that may hold ids or URLs, and texts near copied ones.

    declared: dotted paths of the reference columns, some of which the file may lack.
    """
    seen = RowMatches()
    with open_parquet(store, path) as file:
        schema = file.schema_arrow
        refs = references_in(schema, declared)
        donors = [DONORS] if has_donors(schema) else []
        names = {"id", "parent", *donors, *(r.column for r in refs), *(() if has_id(schema) else URLS)}
        columns = [name for name in schema.names if name in names]
        for groups, table in blocks(file, columns) if columns else ():
            out = gone.rows(table, refs)
            named = any(forgotten_donors(table[name], gone.ids) for name in donors)
            named_here = named or any(gone.ids.mask(ids_of(table, ref)).any() for ref in refs)
            seen.changes = seen.changes or named_here or bool(out.any())
            if has_id(schema):
                places = gone.ids.find(table["id"])
                seen.ids.append(places[places >= 0])
                heirs = gone.heirs(table["id"].filter(pa.array(~out)))
                if heirs or named:  # rare, so texts are read for few blocks
                    words = [f.name for f in schema if may_have_words(f)]
                    rows = file.read_row_groups(groups, columns=list(dict.fromkeys(["id", *words])))
                    rows = rows.filter(pa.array(~out))
                    if take_back(rows, gone.ids, gone.taken) is not rows:
                        seen.changes = True
                        seen.heirs |= heirs
    return seen


def rewrite(
    store: Store, path: str, gone: ForgottenRows, declared: Collection[str], stats: dict[str, dict[str, Any]]
) -> Shard:
    """Rewrites the file without forgotten rows and returns its new record. Idempotent.

    declared: as in `looked_at`; stats: receives column -> statistics, as in `write_shard`.
    """
    with open_parquet(store, path) as file:
        # A group that reached the byte limit is smaller, so the largest group gives the row limit.
        sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        group_rows = max(sizes, default=1)
        refs = references_in(file.schema_arrow, declared)
        tables = (gone.scrub(table, refs)[0] for _, table in blocks(file))
        schema = pa.schema([f.with_type(_declared(f.type)) for f in file.schema_arrow])
        return write_shard(store, path, tables, schema, group_rows, stats)


def _declared(kind: pa.DataType) -> pa.DataType:
    """Returns the type as stages declare it: list items read from Parquet may be named `element`, pyarrow uses `item`."""
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_declared(f.type)) for f in kind])
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        inner = kind.value_field.with_name("item").with_type(_declared(kind.value_type))
        return pa.list_(inner, kind.list_size if pa.types.is_fixed_size_list(kind) else -1)
    return kind


class RejectsLeft(NamedTuple):
    """Rejects of a shard without forgotten rows. num_gone: removed rejects; num_orphans: rejects that remain and call their
    row a duplicate of one that is forgotten now."""

    table: pa.Table
    num_gone: int
    num_orphans: int
    changes: bool


def rejects_left(store: Store, folder: str, index: int, gone: ForgottenRows) -> RejectsLeft:
    rows = read_rejects(store, folder, index)
    out = gone.ids.mask(rows["id"])
    left = rows.filter(pa.array(~out)) if out.any() else rows
    asked = pc.match_substring_regex(pc.fill_null(left["detail"], ""), NAMING_DETAIL)
    num_orphans = 0
    places = np.flatnonzero(np.asarray(asked) | (gone._heirs.mask(left["id"]) if gone.taken else False))
    if len(places):
        details = left["detail"].to_pylist()
        some = left.select(["id", "detail"]).take(pa.array(places)).to_pydict()
        texts = [text or "" for text in some["detail"]]
        new = gone.scrub_texts(texts, some["id"])
        if new != texts:
            num_orphans = sum(
                ORPHAN in text and ORPHAN not in old for text, old in zip(new, texts, strict=True)
            )
            for place, text in zip(places.tolist(), new, strict=True):
                details[place] = text
            column = pa.chunked_array([pa.array(details, pa.string())])
            left = left.set_column(left.schema.get_field_index("detail"), left.schema.field("detail"), column)
    return RejectsLeft(left, int(out.sum()), num_orphans, left is not rows)


def rewrite_rejects(store: Store, folder: str, index: int, gone: ForgottenRows) -> tuple[dict[str, int], str]:
    """Rewrites a shard's rejects. Returns their counts by code, as in a receipt, and the digest of the file."""
    left = rejects_left(store, folder, index, gone).table
    step = left["stage"][0].as_py() if left.num_rows else ""
    rows = (row for batch in left.drop_columns(["stage"]).to_batches() for row in batch.to_pylist())
    return write_rejects(store, folder, index, step, (Reject(**row) for row in rows))


def log_left(store: Store, path: str, gone: ForgottenRows) -> tuple[list[str], int]:
    """Returns (remaining lines of a log, number of removed or changed lines).

    Lines of a `.jsonl` log are removed; in other logs, which are plain text, only ids and URLs are replaced.
    """
    lines = store.read_bytes(path).decode("utf-8", "replace").splitlines()
    if not path.endswith(".jsonl"):
        scrubbed = gone.scrub_texts(lines)
        return scrubbed, sum(new != old for new, old in zip(scrubbed, lines, strict=True))
    out = gone.in_lines([_as_json(line) for line in lines])
    left = [line for line, gone_ in zip(lines, out, strict=True) if not gone_]
    return left, len(lines) - len(left)


def _as_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # a line cut off when its process died
        return line


def rewrite_log(store: Store, path: str, gone: ForgottenRows) -> None:
    """Rewrites a log without forgotten rows; removes the file if no line remains."""
    left, _ = log_left(store, path, gone)
    if left:
        store.write_bytes(path, "".join(f"{line}\n" for line in left).encode(), sync_folder=False)
    else:
        store.remove(path)


def with_digest(shard: Shard, made: Shard) -> Shard:
    """Returns `shard` with digest, footer and number of rows of its rewritten file `made`."""
    return replace(shard, digest=made.digest, footer=made.footer, num_rows=made.num_rows)
