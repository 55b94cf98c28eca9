"""`diff`: compares two runs of a step: what they were made from, their rejects, and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vlpipe.pipeline.inspect.diff_rows import RowDiff, Side, column_types, compare_rows
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.storage.printable import cell


@dataclass(kw_only=True)
class Diff:
    """Differences of runs A and B. facts: (name, value in A, value in B), if different; rejects: (code, rows in A, in B)."""

    facts: list[tuple[str, str, str]]
    rejects: list[tuple[str, int, int]]
    rows: RowDiff

    @property
    def is_empty(self) -> bool:
        return not self.facts and self.rows.is_empty and all(a == b for _, a, b in self.rejects)


def diff(a: Side, b: Side, num_examples: int = 5) -> Diff:
    """Returns the differences of two runs, with up to `num_examples` rows only in A, only in B, and changed."""
    facts = [*fact_changes(a.record, b.record), *_column_changes(a, b)]
    rejects = rejects_beside(a.record, b.record)
    return Diff(facts=facts, rejects=rejects, rows=compare_rows(a, b, num_examples))


def fact_changes(a: StepRecord, b: StepRecord) -> list[tuple[str, str, str]]:
    """Returns (name, value in A, value in B) of what differs in the manifests: use, parameters, files, versions, ...

    If a run is not finished, it has no manifest: only the state is compared.
    """
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
    facts += [(f"artifact {k}", *v) for k, v in _beside(_short(m.artifacts), _short(n.artifacts))]
    facts += [(f"counted {k}", *v) for k, v in _beside(m.counts, n.counts)]
    facts += [("forgotten since", f"{m.forgotten:,}", f"{n.forgotten:,}")]
    return [fact for fact in facts if fact[1] != fact[2]]


def _beside(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in sorted({*a, *b}):
        yield name, (cell(a[name]) if name in a else "-", cell(b[name]) if name in b else "-")


def _flat(params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns nested parameters flattened to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat


def _short(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest[:21] for name, digest in digests.items()}  # "step:" and 16 digits


def rejects_beside(a: StepRecord, b: StepRecord) -> list[tuple[str, int, int]]:
    """Returns (code, rows in A, rows in B) of every reject code, sorted by code."""
    counted = []
    for record in (a, b):
        total: Counter[str] = Counter()
        for receipt in record.receipts:
            total.update(receipt.rejects)
        counted.append(total)
    return [(code, counted[0][code], counted[1][code]) for code in sorted({*counted[0], *counted[1]})]


def _column_changes(a: Side, b: Side) -> Iterator[tuple[str, str, str]]:
    """Yields (`column NAME`, type in A, type in B) for columns whose types differ; `-` if a side has no such column.

    Nothing if a side has no shard, because its columns are unknown.
    """
    x, y = (column_types(side) for side in (a, b))
    for name in sorted({*x, *y}) if x and y else ():
        if x.get(name) != y.get(name):
            yield f"column {name}", x.get(name, "-"), y.get(name, "-")


def render(found: Diff, names: tuple[str, str]) -> RenderableType:
    """Returns terminal output: a table of facts and counts with A beside B, then examples. names: titles of A and B."""
    table = Table(box=None, pad_edge=False)
    for title in ("", *names):
        table.add_column(escape(title), overflow="fold", justify="left")
    for fact in found.facts:
        table.add_row(*(escape(text) for text in fact))
    rows = found.rows
    numbers = [("rows", *rows.num_rows), ("rows only here", rows.num_only_a, rows.num_only_b)]
    for code, *both in [*numbers, *found.rejects]:
        color = "yellow" if both[0] != both[1] else "dim"
        table.add_row(f"[{color}]{escape(str(code))}[/{color}]", *(f"{n:,}" for n in both))
    return Group(table, *(escape(line) for line in ["", *_lines(found)]))


def _lines(found: Diff) -> Iterator[str]:
    rows = found.rows
    if rows.num_both:
        yield _compared(rows)
    for name, ids, num in (("A", rows.only_a, rows.num_only_a), ("B", rows.only_b, rows.num_only_b)):
        if ids:
            yield f"only in {name}: {', '.join(ids)}" + (", ..." if num > len(ids) else "")
    yield _verdict(found)
    for label, lines in rows.examples:
        yield label
        yield from (f"    {line}" for line in lines)


def _compared(rows: RowDiff) -> str:
    """Returns a line with the compared columns; for heavy ones, whether values or only digests of files were compared."""
    heavy = []
    for name in rows.heavy:
        num = rows.by_value[name]
        heavy.append(
            f"{name} ({f'heavy, by value in {num:,} pair(s) of shards' if num else 'heavy, by digest'})"
        )
    return f"compared in rows that both have: {', '.join([*rows.light, *heavy])}"


def _verdict(found: Diff) -> str:
    rows = found.rows
    if all(rows.num_rows) and not (rows.light or rows.heavy):
        return "they have no column in common, so no row can be compared"
    if rows.num_changed:
        counted = ", ".join(f"{name} in {num:,}" for name, num in rows.columns.most_common())
        return f"{rows.num_changed:,} row(s) that both have differ: {counted}"
    if not rows.num_both:
        return "no difference" if found.is_empty else "they have no row in common"
    text = "no difference" if found.is_empty else "the rows that both have are equal"
    return text + (", but some are at another position" if found.is_empty and rows.is_moved else "")
