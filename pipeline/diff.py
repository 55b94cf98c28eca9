"""Two runs of a step: what they were made from, and which rows differ. Shard by shard; only unpaired ids are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vlpipe.pipeline.cells import cell
from vlpipe.pipeline.history import changes
from vlpipe.pipeline.receipt import Receipt
from vlpipe.pipeline.records import StepRecord
from vlpipe.pipeline.shard import is_heavy, open_parquet, read_batches
from vlpipe.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Side:
    """A step's folder in its root."""

    store: Store
    record: StepRecord

    @property
    def receipts(self) -> list[Receipt]:
        return self.record.receipts


@dataclass(kw_only=True)
class Diff:
    """`facts`: (what, in A, in B) of all that was declared and differs. Examples are ids, or numbers of rows without id."""

    facts: list[tuple[str, str, str]] = field(default_factory=list)
    rejects: list[tuple[str, int, int]] = field(default_factory=list)
    rows: tuple[int, int] = (0, 0)
    num_columns: int = 0  # that were compared
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    num_only_a: int = 0
    num_only_b: int = 0
    num_changed: int = 0
    columns: Counter[str] = field(default_factory=Counter)  # column -> rows that differ in it
    examples: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (
            self.facts or self.num_only_a or self.num_only_b or self.num_changed or self.rejects_differ
        )

    @property
    def rejects_differ(self) -> bool:
        return any(a != b for _, a, b in self.rejects)


def diff(a: Side, b: Side, num_examples: int = 5) -> Diff:
    found = Diff(facts=fact_changes(a.record, b.record), rejects=rejects_beside(a.record, b.record))
    found.rows = (a.record.num_rows, b.record.num_rows)
    columns = _columns(a, b, found)
    found.num_columns = len(columns)
    _Rows(a, b, columns, found, num_examples).compare()
    return found


def fact_changes(a: StepRecord, b: StepRecord) -> list[tuple[str, str, str]]:
    """Use, parameters, files, versions, inputs and source, as far as they differ."""
    m, n = a.manifest, b.manifest
    if m is None or n is None:
        states = ["finished" if r.manifest else f"not finished, {len(r.receipts)} shard(s)" for r in (a, b)]
        return [("state", *states)] if states[0] != states[1] else []  # type: ignore[list-item]  # two states
    facts = [("use", m.use, n.use)]
    facts += [(f"parameter {k}", *v) for k, v in _beside(_flat(m.params), _flat(n.params))]
    facts += [(f"content of {k}", *v) for k, v in _beside(_short(m.files), _short(n.files))]
    facts += [(f"version of {k}", *v) for k, v in _beside(m.versions, n.versions)]
    facts += [
        ("inputs", ", ".join(m.inputs), ", ".join(n.inputs)),
        ("source", " ".join(m.sources), " ".join(n.sources)),
    ]
    facts += [("step key", m.step_key[:16], n.step_key[:16])]
    return [fact for fact in facts if fact[1] != fact[2]]


def _beside(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in sorted({*a, *b}):
        yield name, (cell(a[name]) if name in a else "-", cell(b[name]) if name in b else "-")


def _flat(params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat


def _short(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest[:21] for name, digest in digests.items()}  # "step:" and 16 digits


def rejects_beside(a: StepRecord, b: StepRecord) -> list[tuple[str, int, int]]:
    counted = []
    for record in (a, b):
        total: Counter[str] = Counter()
        for receipt in record.receipts:
            total.update(receipt.rejects)
        counted.append(total)
    return [(code, counted[0][code], counted[1][code]) for code in sorted({*counted[0], *counted[1]})]


def _columns(a: Side, b: Side, found: Diff) -> list[str]:
    """Light columns that both have with one type; the others are facts."""
    schemas = [_light(side) for side in (a, b)]
    for name in sorted({*schemas[0], *schemas[1]}):
        types = [str(s.get(name, "-")) for s in schemas]
        if types[0] != types[1] and a.receipts and b.receipts:
            found.facts.append((f"column {name}", *types))  # type: ignore[arg-type]  # two types
    return [name for name, dtype in schemas[0].items() if schemas[1].get(name) == dtype]


def _light(side: Side) -> dict[str, pa.DataType]:
    if not side.receipts:
        return {}
    with open_parquet(side.store, side.receipts[0].shard.path) as file:
        return {f.name: f.type for f in file.schema_arrow if not is_heavy(f)}


@dataclass
class _Rows:
    """Rows of equal shards are compared at once; ids found on one side only wait for the other side's other shards."""

    a: Side
    b: Side
    columns: list[str]
    found: Diff
    num_examples: int
    waiting_a: dict[str, int] = field(default_factory=dict)  # id -> place of its receipt
    waiting_b: dict[str, int] = field(default_factory=dict)

    def compare(self) -> None:
        if not self.columns:
            return
        if "id" not in self.columns:
            self._by_position()
            return
        for k in range(max(len(self.a.receipts), len(self.b.receipts))):
            pair = [side.receipts[k] if k < len(side.receipts) else None for side in (self.a, self.b)]
            if pair[0] and pair[1] and pair[0].shard.digest == pair[1].shard.digest:
                continue
            tables = [
                read_light(s.store, r, self.columns) for s, r in zip((self.a, self.b), pair, strict=True)
            ]
            self._match(tables[0], tables[1], k)
        self._far_pairs()
        self.found.num_only_a, self.found.num_only_b = len(self.waiting_a), len(self.waiting_b)
        self.found.only_a = list(self.waiting_a)[: self.num_examples]
        self.found.only_b = list(self.waiting_b)[: self.num_examples]

    def _match(self, a: pa.Table, b: pa.Table, k: int) -> None:
        place = {id_: n for n, id_ in enumerate(b["id"].to_pylist())}
        ids = a["id"].to_pylist()
        both = [n for n, id_ in enumerate(ids) if id_ in place]
        partners = [place[ids[n]] for n in both]
        self._differences(a.take(pa.array(both, pa.int64())), b.take(pa.array(partners, pa.int64())))
        mine = set(ids)
        self.waiting_a.update((id_, k) for id_ in ids if id_ not in place)
        self.waiting_b.update((id_, k) for id_ in place if id_ not in mine)

    def _far_pairs(self) -> None:
        """Rows that lie in another shard on the other side: grouped, so that each pair of shards is read once."""
        pairs: dict[tuple[int, int], list[str]] = {}
        for id_, k in self.waiting_a.items():
            if id_ in self.waiting_b:
                pairs.setdefault((k, self.waiting_b[id_]), []).append(id_)
        for (k, m), ids in sorted(pairs.items()):
            left = _rows_of(read_light(self.a.store, self.a.receipts[k], self.columns), ids)
            right = _rows_of(read_light(self.b.store, self.b.receipts[m], self.columns), ids)
            self._differences(left, right)
            for id_ in ids:
                del self.waiting_a[id_], self.waiting_b[id_]

    def _by_position(self) -> None:
        """Rows without an id (results, losses): the n-th beside the n-th."""
        tables = [_all_light(side, self.columns) for side in (self.a, self.b)]
        num = min(t.num_rows for t in tables)
        self.found.num_only_a, self.found.num_only_b = (t.num_rows - num for t in tables)
        self._differences(tables[0].slice(0, num), tables[1].slice(0, num))

    def _differences(self, a: pa.Table, b: pa.Table) -> None:
        """Count where two tables, row beside row, differ. NaN is equal to NaN."""
        changed: dict[int, list[str]] = {}
        for name in self.columns:
            if name == "id" or a[name].combine_chunks().equals(b[name].combine_chunks()):
                continue
            beside = zip(a[name].to_pylist(), b[name].to_pylist(), strict=True)
            rows = [n for n, (x, y) in enumerate(beside) if x != y and repr(x) != repr(y)]
            if rows:
                self.found.columns[name] += len(rows)
            for n in rows:
                changed.setdefault(n, []).append(name)
        self.found.num_changed += len(changed)
        for n in sorted(changed)[: self.num_examples - len(self.found.examples)]:
            rows_ab = [t.select(changed[n]).slice(n, 1).to_pylist()[0] for t in (a, b)]
            self.found.examples.append((_label(a, n), changes(*rows_ab)))


def _label(table: pa.Table, n: int) -> str:
    """Its id; else its number and its texts: `row 3 (tr@1)`."""
    if "id" in table.schema.names:
        return str(table["id"][n].as_py())
    texts = [table[f.name][n].as_py() for f in table.schema if pa.types.is_string(f.type)]
    return f"row {n}" + (f" ({', '.join(cell(t) for t in texts)})" if texts else "")


def read_light(store: Store, receipt: Receipt | None, columns: Sequence[str]) -> pa.Table:
    if receipt is None:
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    with open_parquet(store, receipt.shard.path) as file:
        empty = file.schema_arrow.empty_table().select(columns)
    tables = [empty, *read_batches(store, receipt.shard, columns)]
    return pa.concat_tables([t.replace_schema_metadata(None) for t in tables], promote_options="permissive")


def _all_light(side: Side, columns: Sequence[str]) -> pa.Table:
    tables = [read_light(side.store, receipt, columns) for receipt in side.receipts]
    return pa.concat_tables(tables) if tables else read_light(side.store, None, columns)


def _rows_of(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    place = {id_: n for n, id_ in enumerate(table["id"].to_pylist())}
    return table.take([place[id_] for id_ in ids])


def render(found: Diff, names: tuple[str, str]) -> RenderableType:
    """For a terminal: a table of facts and counts with A beside B, then examples."""
    table = Table(box=None, pad_edge=False)
    for title in ("", *names):
        table.add_column(escape(title), overflow="fold", justify="left")
    for fact in found.facts:
        table.add_row(*(escape(text) for text in fact))
    numbers = [("rows", *found.rows), ("rows only here", found.num_only_a, found.num_only_b)]
    for code, *both in [*numbers, *found.rejects]:
        color = "yellow" if both[0] != both[1] else "dim"
        table.add_row(f"[{color}]{escape(str(code))}[/{color}]", *(f"{n:,}" for n in both))
    return Group(table, *(escape(line) for line in _lines(found)))


def _lines(found: Diff) -> Iterator[str]:
    yield ""
    for name, ids, num in (("A", found.only_a, found.num_only_a), ("B", found.only_b, found.num_only_b)):
        if ids:
            yield f"only in {name}: {', '.join(ids)}" + (", ..." if num > len(ids) else "")
    if not found.num_columns and all(found.rows):
        yield "they have no column in common, so no row can be compared"
    elif found.is_empty:
        yield "no difference"
    elif not found.num_changed:
        yield "the rows that both have are equal"
    else:
        counted = ", ".join(f"{name} in {num:,}" for name, num in found.columns.most_common())
        yield f"{found.num_changed:,} row(s) that both have differ: {counted}"
    for label, lines in found.examples:
        yield label
        yield from (f"    {line}" for line in lines)
