"""`show`: content of a step, a shard, or a Parquet file: schema, counts, rejects by reason, first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vlpipe.pipeline.engine.records.receipts import Receipt, sum_counts
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.errors import printable
from vlpipe.pipeline.inspect.on_disk import StepFolder, StepRecord, data_path, need_step, read_step
from vlpipe.pipeline.inspect.rows.conditions import Queries
from vlpipe.pipeline.inspect.rows.table import open_files
from vlpipe.pipeline.inspect.rows.where import COMPARISON, parse_where
from vlpipe.pipeline.inspect.rows.written import written_conditions
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.shard import is_heavy, open_parquet
from vlpipe.pipeline.storage.printable import cell, counts, size, struct_text
from vlpipe.pipeline.storage.store import Store

MERGED = (("min", min), ("max", max), ("min_length", min), ("max_length", max))
TABLE_CHARS = 100  # max width of a table of rows; wider rows are shown as blocks


@dataclass(kw_only=True)
class Shown:
    """Content to show. facts: (name, text) lines; columns: column -> nulls, min, max; heavy_at: column -> file or folder
    that holds it; rows: the first rows."""

    facts: list[tuple[str, str]]
    schema: pa.Schema
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    heavy_at: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def show(place: StepFolder, path: str, num_rows: int = 5, where: str | None = None) -> Shown:
    """Returns what is stored at `place`, which `find_place` made from `path`, with the first `num_rows` rows.

    where: only rows that meet this condition, see `where.parse_where`. Raises VlpipeError if it does not fit the columns, or
    if the place is a root.
    """
    if place.file:
        return _show_files(place.store, [place.file], [("file", path)], num_rows, where)
    if place.rejects:
        return _show_rejects(place, num_rows, where)
    if place.index is not None:
        return _show_shard(place, num_rows, where)
    return _show_step(place.store, need_step(place, path), num_rows, where)


def _show_files(
    store: Store, files: Sequence[str], facts: list[tuple[str, str]], num_rows: int, where: str | None
) -> Shown:
    with open_parquet(store, files[0]) as file:
        schema = file.schema_arrow
        total = file.metadata.num_rows if len(files) == 1 else None
    if total is not None:
        facts = [*facts, ("rows", f"{total:,}")]
    simple = COMPARISON.fullmatch(
        where or ""
    )  # one comparison of a column: the first rows are found without a search
    searched = where is not None and not (simple and simple[1] in schema.names)
    conditions = written_conditions(where or "", schema) if searched else None
    if conditions is None:
        return Shown(facts=facts, schema=schema, rows=first_rows(store, files, num_rows, where))
    table = open_files(store, files)
    found = Queries().matching(table, conditions)
    assert found is not None
    facts = [
        *facts,
        ("match", f"{len(found):,} of {table.num_rows:,} rows: {' and '.join(map(str, conditions))}"),
    ]
    return Shown(facts=facts, schema=schema, rows=table.rows(found[:num_rows].tolist(), schema.names))


def _show_rejects(place: StepFolder, num_rows: int, where: str | None) -> Shown:
    record = read_step(place.store, place.folder)
    receipts = [r for r in record.receipts if r.rejects and place.index in (None, r.index)]
    facts = [("rejects of", place.folder), *_reject_facts(receipts)]
    if not receipts:
        return Shown(facts=[*facts, ("rows", "0")], schema=pa.schema([]))
    files = [rejects_path(place.folder, r.index) for r in receipts]
    return _show_files(place.store, files, facts, num_rows, where)


def _reject_facts(receipts: Sequence[Receipt]) -> list[tuple[str, str]]:
    """Returns one line per kind of reject: `filtered  1,500 (not_kth 1,500)`."""
    by_kind: dict[str, Counter[str]] = {}
    for receipt in receipts:
        for code, num in receipt.rejects.items():
            by_kind.setdefault(code.partition(":")[0], Counter())[code] += num
    return [(kind, f"{c.total():,} ({counts(c)})") for kind, c in sorted(by_kind.items())]


def _count_facts(receipts: Sequence[Receipt]) -> list[tuple[str, str]]:
    found = sum_counts(receipts)
    return [("counts", ", ".join(f"{name} {num:,}" for name, num in found.items()))] if found else []


def _show_shard(place: StepFolder, num_rows: int, where: str | None) -> Shown:
    record = read_step(place.store, place.folder)
    receipt = next((r for r in record.receipts if r.index == place.index), None)
    path = data_path(place)
    if receipt is None:
        facts = [("shard", path), ("receipt", "none: the engine ignores this file")]
        return _show_files(place.store, [path], facts, num_rows, where)
    run = receipt.run
    took = f"{run['seconds']} s on {run['host']}, attempt {run['attempts']}" if run else ""
    facts = [
        ("shard", path),
        ("rows", f"{receipt.shard.num_rows:,} of {receipt.rows_in:,} rows in"),
        *_reject_facts([receipt]),
        *_count_facts([receipt]),
        ("size", size(receipt.bytes)),
        ("key", receipt.shard.key),
        ("sha256", receipt.shard.digest),
        *([("made in", took)] if took else []),
    ]
    shown = _show_files(place.store, [path], [], num_rows, where)
    return Shown(
        facts=[*facts, *_match_facts(shown)],
        schema=shown.schema,
        columns={k: dict(v) for k, v in receipt.columns.items()},
        heavy_at={n: at for n, at, *_ in receipt.shard.heavy if at != path},
        rows=shown.rows,
    )


def _match_facts(shown: Shown) -> list[tuple[str, str]]:
    return [fact for fact in shown.facts if fact[0] == "match"]


def _show_step(store: Store, folder: str, num_rows: int, where: str | None) -> Shown:
    record = read_step(store, folder)
    facts = step_facts(store, record)
    files = [r.shard.path for r in record.receipts if r.shard.num_rows]
    if not record.receipts:
        return Shown(facts=facts, schema=pa.schema([]))
    shown = _show_files(store, files or [record.receipts[0].shard.path], [], num_rows, where)
    heavy_at = {n: at.rpartition("/")[0] for n, at, *_ in record.receipts[0].shard.heavy}
    return Shown(
        facts=[*facts, *_match_facts(shown)],
        schema=shown.schema,
        columns=merge_columns([r.columns for r in record.receipts]),
        heavy_at={n: at for n, at in heavy_at.items() if at != folder},
        rows=shown.rows,
    )


def step_facts(store: Store, record: StepRecord) -> list[tuple[str, str]]:
    """Returns (name, text) lines about a step: parameters, rows, rejects, size, seconds, artifacts."""
    m, receipts = record.manifest, record.receipts
    rows_in = sum(r.rows_in for r in receipts)
    facts = [("step", record.folder)]
    if m is None:
        facts.append(("state", f"not finished, {len(receipts)} shard(s) are there"))
    else:
        params = {name: value for name, value in m.params.items() if value is not None}
        facts += [("use", m.use), ("parameters", struct_text(params) if params else "none")]
        facts += [("from", ", ".join(m.inputs))] if m.inputs else []
    rows = f"{record.num_rows:,}" + (f" of {rows_in:,} rows in" if rows_in else "")
    facts += [
        ("rows", f"{rows}, in {len(receipts)} shard(s)"),
        *_reject_facts(receipts),
        *_count_facts(receipts),
    ]
    facts.append(("size", size(sum(r.bytes for r in receipts))))
    facts.append(("seconds", f"{seconds_of(store, record.folder, receipts):.1f}, over all shards"))
    if m is not None and m.artifacts:
        names = list(m.artifacts)
        more = f", ... {len(names)} files" if len(names) > 6 else ""
        facts.append(("artifacts", f"{', '.join(names[:6])}{more}, in {store.path(record.folder)}/artifacts"))
    return facts


def merge_columns(all_columns: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Merges column statistics over shards: sum of nulls, smallest min and length, largest max and length."""
    merged: dict[str, dict[str, Any]] = {}
    for columns in all_columns:
        for name, stat in columns.items():
            have = merged.setdefault(name, {"nulls": 0})
            have["nulls"] += stat["nulls"]
            for key, choose in MERGED:
                if key in stat:
                    have[key] = choose(stat[key], have.get(key, stat[key]))
    return merged


def first_rows(store: Store, files: Sequence[str], num_rows: int, where: str | None) -> list[dict[str, Any]]:
    """Returns the first `num_rows` rows that meet the condition, read in small batches, file by file."""
    rows: list[dict[str, Any]] = []
    for path in files if num_rows > 0 else ():
        with open_parquet(store, path) as file:
            keep = parse_where(where, file.schema_arrow) if where else None
            least = (64 if any(map(is_heavy, file.schema_arrow)) else 4096) if where else 1
            for batch in file.iter_batches(batch_size=max(num_rows, least)):
                table = keep(pa.table(batch)) if keep else pa.table(batch)
                rows += table.slice(0, num_rows - len(rows)).to_pylist()
                if len(rows) >= num_rows:
                    return rows
    return rows


def render(shown: Shown) -> RenderableType:
    """Returns terminal output: facts, the schema with statistics, and the rows as a table or as blocks."""
    parts: list[RenderableType] = [_facts(shown.facts)]
    if shown.schema.names:
        parts += [Text(), _schema_table(shown)]
    if shown.rows:
        parts += [Text(), rows_view(shown.rows, shown.schema)]
    return Group(*parts)


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    return table


def _schema_table(shown: Shown) -> Table:
    """Returns the schema as a table, with statistics if there are any; rejects and files without a receipt have none."""
    table = Table(box=None, pad_edge=False)
    numbers = ("nulls", "min", "max") if shown.columns else ()
    lengths = ("length",) if any("max_length" in stat for stat in shown.columns.values()) else ()
    for name in ("column", "type", *numbers, *lengths, ""):
        table.add_column(name, overflow="fold", justify="right" if name in (*numbers, *lengths) else "left")
    for name, dtype, note in _columns(shown):
        stat = shown.columns.get(name, {})
        found = [cell(stat[key]) if key in stat else "" for key in numbers]
        table.add_row(escape(name), escape(dtype), *found, *(_length(stat) for _ in lengths), note)
    return table


def _length(stat: Mapping[str, Any]) -> str:
    """Returns the lengths of texts (characters), bytes and lists (items): `3` or `3 to 120`; empty without any."""
    ends = dict.fromkeys(f"{stat[key]:,}" for key in ("min_length", "max_length") if key in stat)
    return " to ".join(ends)


def _columns(shown: Shown) -> Iterator[tuple[str, str, str]]:
    for f in shown.schema:
        yield f.name, str(f.type), "heavy" if is_heavy(f) else ""
    for name, at in shown.heavy_at.items():
        yield name, "", f"heavy, in {at}"


def rows_view(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> RenderableType:
    """Returns rows as a table if that is at most TABLE_CHARS wide and no column is nested, else each row as a block.

    In a block, a list of structs has a line per element.
    """
    cells = [[cell(value) for value in row.values()] for row in rows]
    widths = [max(len(text) for text in column) + 2 for column in zip(schema.names, *cells, strict=True)]
    if any(pa.types.is_nested(f.type) for f in schema) or sum(widths) > TABLE_CHARS:
        return Group(*(block for row in rows for block in (_record(row), Text())))
    table = Table(box=None, pad_edge=False)
    for f in schema:
        number = pa.types.is_integer(f.type) or pa.types.is_floating(f.type)
        table.add_column(escape(f.name), overflow="fold", justify="right" if number else "left")
    for texts in cells:
        table.add_row(*(escape(text) for text in texts))
    return table


def _record(row: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in row.items():
        table.add_row(escape(printable(name)), escape(lines_of(value)))
    return table


def lines_of(value: Any) -> str:
    """Returns the text of a value; a list of structs gets one line per element."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(struct_text(v) if v is not None else "null" for v in value)
    return cell(value)
