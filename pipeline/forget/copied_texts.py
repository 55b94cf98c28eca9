"""Removes texts that other rows (heirs) copied from forgotten rows (donors), also where later steps changed the texts.

The column `donors` (list of lists of ids) holds for the k-th entry of a row the ids of all rows the entry comes from, or
null if the entry is the row's own. Entries are a list of structs with `text`, `kept` and `why`, such as the column `texts`.
An entry whose donors are all forgotten is emptied in place (empty text, kept=False, why='forgotten'), so that parallel
lists with one value per entry, and decisions that refer to positions, stay valid. Its text is also removed from all other
files with a row of the same id, such as the text before cleaning or the detail of a reject.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.forgotten import WHY
from vlpipe.pipeline.parquet.block_reads import blocks
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.shard import is_heavy, open_parquet
from vlpipe.pipeline.storage.store import Store

DONORS = "donors"
DONORS_TYPE = pa.list_(pa.list_(pa.string()))
ENTRY = ("text", "kept", "why")

CopiedTexts = Mapping[str, frozenset[str]]  # id of a row -> its texts that come only from forgotten rows


def find_taken(store: Store, paths: Iterable[str], gone: TextSet) -> CopiedTexts:
    """Returns row id -> texts that come only from forgotten rows. Searches all files: later steps may change a text."""
    taken, kept = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for path in paths:
        for row, named in _heirs(store, path, gone):
            for entries in _entry_lists(row):
                donors = [*row[DONORS], *[None] * len(entries)]
                for entry, givers in zip(entries, donors, strict=False):
                    words = (entry or {}).get("text") or ""
                    (taken if _is_gone(givers, named) else kept)[row["id"]].add(words)
    return {id_: frozenset(words - kept[id_] - {""}) for id_, words in taken.items()}


def _heirs(store: Store, path: str, gone: TextSet) -> Iterator[tuple[dict[str, Any], Set[str]]]:
    """Yields (row, forgotten donors) for rows with a forgotten donor. The row has `id`, `donors` and its entry columns;
    the set holds the forgotten donors of all rows read in the same block."""
    with open_parquet(store, path) as file:
        schema = file.schema_arrow
        if not has_donors(schema):
            return
        columns = ["id", DONORS, *(f.name for f in schema if _is_entries(f.type))]
        for groups, donors in blocks(file, [DONORS]):
            named = forgotten_donors(donors[DONORS], gone)
            if named:
                rows = file.read_row_groups(groups, columns=columns)
                known = rows.filter(pc.is_valid(rows[DONORS])).to_pylist()
                yield from ((r, named) for r in known if any(_named(givers, named) for givers in r[DONORS]))


def has_donors(schema: pa.Schema) -> bool:
    """True if the schema has `id` and a `donors` column of type list<list<string>>."""
    return "id" in schema.names and DONORS in schema.names and schema.field(DONORS).type == DONORS_TYPE


def forgotten_donors(donors: pa.ChunkedArray, gone: TextSet) -> set[str]:
    """Returns the ids in a `donors` column that are in `gone`."""
    ids = pc.list_flatten(pc.list_flatten(donors))
    return set(ids.filter(pa.array(gone.mask(ids))).to_pylist())


def take_back(table: pa.Table, gone_ids: TextSet, taken: CopiedTexts) -> pa.Table:
    """Returns the table (with an `id`) without texts copied from forgotten rows; the same object if nothing changes."""
    heirs, gone = set[int](), set[str]()
    if has_donors(table.schema):
        gone = forgotten_donors(table[DONORS], gone_ids)
    if gone:
        donors = table[DONORS].to_pylist()
        heirs = {n for n, row in enumerate(donors) if any(_named(givers, gone) for givers in row or ())}
    if taken:
        heirs |= {n for n, id_ in enumerate(table["id"].to_pylist()) if id_ in taken}
    names = [f.name for f in table.schema if may_have_words(f)] if heirs else []
    rows = table.select(["id", *names]).to_pylist() if heirs else []
    for n in heirs:
        rows[n] = _without(rows[n], gone, taken.get(rows[n]["id"], frozenset()))
    for name in names:
        f = table.schema.field(name)
        column = pa.chunked_array([pa.array([row[name] for row in rows], f.type)])
        if not column.equals(table[name]):
            table = table.set_column(table.schema.get_field_index(name), f, column)
    return table


def _without(row: dict[str, Any], gone: Set[str], words: frozenset[str]) -> dict[str, Any]:
    """Empties the forgotten entries of a row: by position if the row has donors, else those with a text in `words`."""
    donors: list[list[str] | None] = row.pop(DONORS, None) or []
    places = {place for place, givers in enumerate(donors) if _is_gone(givers, gone)}

    def remaining(place: int, one: Any) -> Any:
        hit = place in places or not donors
        if isinstance(one, dict) and hit and (donors or one["text"] in words):
            return {**one, "text": "", "kept": False, "why": WHY}
        return "" if isinstance(one, str) and hit and one in words else one

    new = dict(row)
    for name, value in row.items():
        if isinstance(value, list):
            new[name] = [remaining(place, one) for place, one in enumerate(value)]
        elif name == "text" and value in words:
            new[name] = ""
    donors_left = [
        None if givers is None else [one for one in givers if one not in gone] for givers in donors
    ]
    return {**new, DONORS: donors_left or None}


def _named(givers: list[str] | None, gone: Set[str]) -> bool:
    return any(one in gone for one in givers or ())


def _is_gone(givers: list[str] | None, gone: Set[str]) -> bool:
    """True if there are donors and all are forgotten. Entries without donors are the row's own, or already emptied."""
    return bool(givers) and all(one in gone for one in givers or ())


def _entry_lists(row: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    yield from (value for name, value in row.items() if name not in ("id", DONORS) and value)


def _is_entries(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    return {f.name for f in kind.value_type} >= set(ENTRY)


def may_have_words(f: pa.Field) -> bool:
    """True for columns that `take_back` reads: `text`, entries, lists of strings, `donors`."""
    if is_heavy(f):
        return False
    if f.name == "text":
        return bool(pa.types.is_string(f.type))
    strings = pa.types.is_list(f.type) and pa.types.is_string(f.type.value_type)
    return strings or _is_entries(f.type) or (f.name == DONORS and f.type == DONORS_TYPE)
