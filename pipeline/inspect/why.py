"""`why`: traces one row through all steps: its shards, what changed, and why it was dropped.

It opens only the shards that can contain the row: shard k of a map step comes from shard k of its input. Gather steps are
searched completely, by id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import pyarrow.compute as pc

from vlpipe.pipeline.engine.planned import PlannedStep, fans_out, is_gather, launches
from vlpipe.pipeline.engine.records.forgotten import read_forgotten
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.records.rejects import read_rejects
from vlpipe.pipeline.errors import VlpipeError, printable
from vlpipe.pipeline.inspect.on_disk import StepReceipts, offset, what_is_there
from vlpipe.pipeline.inspect.why_origins import Facts, Row, is_below
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.printable import cell, struct_text
from vlpipe.pipeline.storage.store import Store

MIN_PREFIX = 8  # min characters of an id prefix
MAX_NAMED = 5  # max number of ids listed
NAMES_ROWS = ("+ witness: ", "+ donors: ")  # lines of a decision that list ids of other rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What one step did with the row.

    what: new, changed, same (the row is in the output); dropped (rejected); read (by a gather step); absent (not in the
    training set, because a step before dropped it); children (the step made other rows from it); lost (in neither output
    nor rejects); not run (no result yet). The first line of dropped, absent and not run is the reason.
    """

    step: str
    what: str
    shard: str = ""
    lines: tuple[str, ...] = ()


class _NamesRows(str):
    """A line of a row's history that may contain ids of other rows: words as long as the id of this row."""

    WORD: ClassVar[re.Pattern[str]] = re.compile(r"[^\s,;()\[\]]+")
    id: str

    def __new__(cls, text: str, id_: str) -> _NamesRows:
        line = super().__new__(cls, text)
        line.id = id_
        return line

    def words(self) -> set[str]:
        return {word for word in self.WORD.findall(self) if len(word) == len(self.id) and word != self.id}

    def named(self, urls: Mapping[str, str]) -> str:
        """Returns the line with the URL added after each id that is in `urls`."""
        return self.WORD.sub(
            lambda word: f"{word[0]} ({urls[word[0]]})" if word[0] in urls else word[0], self
        )


@dataclass(frozen=True, slots=True)
class History:
    """The events of one row, in step order."""

    id: str
    events: list[Event]


@dataclass(slots=True)
class _Seen:
    """The row in the output of a step. index: its shard."""

    index: int
    row: Row


@dataclass
class _Trace:
    """Traces one id. seen: step -> where the row was found; dropped: step that rejected it -> reject code."""

    facts: Facts
    id: str
    seen: dict[str, _Seen] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.facts.store

    @property
    def have(self) -> dict[str, StepReceipts]:
        return self.facts.have

    def step(self, one: PlannedStep) -> Event | None:
        """Returns the step's event; None if the row did not reach the step."""
        came = next((p for p in one.above if p.name in self.seen), None)
        if came is None and one.above and not is_gather(one) and not fans_out(one):
            return None
        if came is not None and not self.have[one.name].receipts:
            return Event(step=one.name, what="not run", lines=(one.reason,))
        receipts = self._candidates(one, came)
        before = self.seen[came.name].row if came else None
        for receipt in receipts if "id" in one.schema_out.names else ():
            row = next(rows_where(self.store, receipt, "id", self.id), None)
            if row is not None:
                self.seen[one.name] = _Seen(receipt.index, row)
                return self._row_event(one, receipt, before, row)
        return self._not_found(one, came, receipts)

    def _candidates(self, one: PlannedStep, came: PlannedStep | None) -> list[Receipt]:
        """Returns the receipts of the shards that can contain the row. came: the input step that has it, if any."""
        receipts = self.have[one.name].receipts
        if is_gather(one) or came is None:
            return list(receipts.values())
        start = offset(one, came, self.have)
        index = None if start is None else start + self.seen[came.name].index
        return [receipts[index]] if index in receipts else []

    def _not_found(self, one: PlannedStep, came: PlannedStep | None, receipts: list[Receipt]) -> Event | None:
        for receipt in receipts:
            reject = self._reject(one, receipt)
            if reject is not None:
                return reject
        if came is None:
            return self._absent(one)
        if is_gather(one):
            was = self.seen[came.name]
            lines = tuple(self.facts.reading(one, came, was.row))
            shard = self.have[came.name].receipts[was.index].shard.path
            return Event(step=one.name, what="read", shard=shard, lines=lines)
        if not receipts:
            return Event(step=one.name, what="not run", lines=("its shard is not done yet",))
        if fans_out(one):
            return self._children(one, receipts[0])
        return Event(step=one.name, what="lost", shard=receipts[0].shard.path)

    def _reject(self, one: PlannedStep, receipt: Receipt) -> Event | None:
        if not receipt.rejects:
            return None
        table = read_rejects(self.store, one.folder, receipt.index)
        for reject in table.filter(pc.equal(table["id"], self.id)).to_pylist():
            text = f"{reject['kind']}: {reject['why']}" + (
                f" ({cell(reject['detail'])})" if reject["detail"] else ""
            )
            self.dropped[one.name] = reject["why"]
            lines = [_NamesRows(text, self.id), *self.facts.log(one, receipt, self.id), *self.facts.by(one)]
            return Event(step=one.name, what="dropped", shard=receipt.shard.path, lines=tuple(lines))
        return None

    def _absent(self, one: PlannedStep) -> Event | None:
        """Returns an event if the step trains and would have read the row had no step above dropped it."""
        if not launches(one) or not self.have[one.name].receipts:
            return None
        for name, why in self.dropped.items():
            if is_below(one, name):
                return Event(step=one.name, what="absent", lines=(f"{name} dropped it ({why})",))
        return None

    def _row_event(self, one: PlannedStep, receipt: Receipt, before: Row | None, row: Row) -> Event:
        """Returns what changed against `before`, the row in the input step; None: the row is new.

        Only map steps report dropped columns, because rows of a gather step may have other columns (decisions, say).
        """
        lines = changes(self.facts.named(before or {}), self.facts.named(row))
        if before is not None and not is_gather(one):
            lines += [f"- {name}" for name in before if name not in one.schema_out.names]
        what = "new" if before is None else "changed" if lines else "same"
        lines = [_NamesRows(line, self.id) if line.startswith(NAMES_ROWS) else line for line in lines]
        lines += self.facts.log(one, receipt, self.id)
        if what != "same":
            lines += self.facts.by(one)
        return Event(step=one.name, what=what, shard=receipt.shard.path, lines=tuple(lines))

    def _children(self, one: PlannedStep, receipt: Receipt) -> Event:
        ids = [row["id"] for row in rows_where(self.store, receipt, "parent", self.id)]
        named = ", ".join(ids[:MAX_NAMED]) + (", ..." if len(ids) > MAX_NAMED else "")
        lines = (f"{len(ids)} row(s) made from it: {named}",)
        return Event(step=one.name, what="children", shard=receipt.shard.path, lines=lines)


def history(steps: Sequence[PlannedStep], store: Store, wanted: str) -> History:
    """Returns the history of a row, given by its id, an id prefix of at least 8 characters, or its url.

    Raises VlpipeError if not exactly one row matches.
    """
    have = what_is_there(steps, store)
    id_ = find_id(steps, store, have, wanted)
    facts = Facts(steps, store, have)
    return History(id_, with_urls(trace(steps, facts, id_), facts))


def with_urls(events: Sequence[Event], facts: Facts) -> list[Event]:
    """Returns the events with the URL of the row added after each id of another row."""
    lines = [line for event in events for line in event.lines if isinstance(line, _NamesRows)]
    urls = facts.urls_of({word for line in lines for word in line.words()})
    return [
        replace(e, lines=tuple(x.named(urls) if isinstance(x, _NamesRows) else x for x in e.lines))
        for e in events
    ]


def trace(steps: Sequence[PlannedStep], facts: Facts, id_: str) -> list[Event]:
    """Returns events in step order. If the row was made from a parent row, the parent's events come first."""
    following = _Trace(facts, id_)
    found = {one.name: event for one in steps if (event := following.step(one)) is not None}
    first = next((one for one in steps if one.name in following.seen), None)
    if first is None or not fans_out(first):
        return list(found.values())
    parent = following.seen[first.name].row["parent"]
    until = list(steps)[: [s.name for s in steps].index(first.name)]
    return trace(until, facts, parent) + list(found.values())


def find_id(steps: Sequence[PlannedStep], store: Store, have: dict[str, StepReceipts], wanted: str) -> str:
    """Returns the id that `wanted` means. Searches the steps in which rows enter: those that list or make rows.

    Raises VlpipeError if no row or several rows match, or if the row was forgotten.
    """
    if not any(h.receipts for h in have.values()):
        raise VlpipeError(f"nothing has run in {store.url} yet; run `vlpipe run` first")
    for one in steps:
        enters = not one.above or is_gather(one) or fans_out(one)
        if not enters or "id" not in one.schema_out.names:
            continue
        found: set[str] = set()
        for receipt in have[one.name].receipts.values():
            found |= _matches(store, receipt, wanted)
            if wanted in found:
                return wanted
        if found:
            return _only(sorted(found), wanted)
    if read_forgotten(store).has_row(wanted, wanted):
        raise VlpipeError(f"row {printable(wanted)} was forgotten; only its hashes are kept")
    raise VlpipeError(
        f"no row has the id or url {wanted!r}; wanted a whole id, its first {MIN_PREFIX} or more characters, or a url"
    )


def _only(found: list[str], wanted: str) -> str:
    if len(found) == 1:
        return found[0]
    named = ", ".join(found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
    raise VlpipeError(f"{wanted!r} matches {len(found)} rows: {named}; give one id, or more characters of it")


def _matches(store: Store, receipt: Receipt, wanted: str) -> set[str]:
    """Returns the ids that equal `wanted`, start with it (if it has MIN_PREFIX characters), or whose row has that `url`."""
    found: set[str] = set()
    with open_parquet(store, receipt.shard.path) as file:
        columns = [name for name in ("id", "url") if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            mask = (
                pc.starts_with(table["id"], wanted)
                if len(wanted) >= MIN_PREFIX
                else pc.equal(table["id"], wanted)
            )
            if "url" in columns:
                mask = pc.or_kleene(mask, pc.equal(table["url"], wanted))
            found.update(table["id"].filter(mask).to_pylist())
    return found


def rows_where(store: Store, receipt: Receipt, column: str, value: str) -> Iterator[Row]:
    """Yields the rows of a shard whose `column` equals `value`, without heavy columns stored in other files."""
    with open_parquet(store, receipt.shard.path) as file:
        if column not in file.schema_arrow.names:
            return
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=[column])
            mask = pc.equal(names[column], value)
            if pc.any(mask).as_py():
                yield from file.read_row_group(group).filter(mask).to_pylist()


def changes(before: Row, after: Row) -> list[str]:
    """Returns a line per column that is new (+) or changed (~); lists of structs are compared element by element."""
    lines: list[str] = []
    for name, value in after.items():
        if name == "id" or (name in before and before[name] == value):
            continue
        old = before.get(name)
        if _is_structs(value) or _is_structs(old):
            lines += [f"{name}: {line}" for line in element_changes(old or [], value or [])]
        elif name in before:
            lines.append(f"~ {name}: {cell(old)} -> {cell(value)}")
        elif value is not None:
            lines.append(f"+ {name}: {cell(value)}")
    return lines


def _is_structs(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def element_changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Returns a line per element that is new (+), changed (~) or removed (-).

    Elements are matched by their first field (in `texts`: the text); elements with equal first fields match in order.
    """
    left, lines = list(before), []
    for element in after:
        key = next(iter(element.values()))
        old = next((e for e in left if next(iter(e.values())) == key), None)
        if old is None:
            lines.append(f"+ {struct_text(element)}")
            continue
        left.remove(old)
        fields = [f"{n} {cell(old.get(n))} -> {cell(v)}" for n, v in element.items() if old.get(n) != v]
        if fields:
            lines.append(f"~ {cell(key)!r}: {', '.join(fields)}")
    return lines + [f"- {struct_text(element)}" for element in left]


TELL: dict[str, Callable[[Event], str]] = {
    "new": lambda e: e.shard,
    "changed": lambda e: e.shard,
    "same": lambda e: f"{e.shard}, unchanged",
    "dropped": lambda e: "dropped, " + e.lines[0],
    "read": lambda e: f"read it, from {e.shard}",
    "children": lambda e: e.shard,
    "absent": lambda e: f"not in its training set: {e.lines[0]}",
    "lost": lambda e: f"not in {e.shard} and not in its rejects: a file is damaged, `vlpipe verify` lists it",
    "not run": lambda e: f"not run yet, {e.lines[0]}".removesuffix(", not run yet"),
}


SAID_FIRST = {"dropped": 1, "absent": 1, "not run": 1}  # number of lines already in the head line


def as_json(found: History) -> str:
    """Returns the history as ASCII JSON, so that any terminal or pipe can print it."""
    return json.dumps({"id": found.id, "events": [asdict(event) for event in found.events]})


def tell(found: History) -> Iterator[tuple[Event, str]]:
    """Yields (event, text) per event: a head line, then indented lines."""
    width = max((len(e.step) for e in found.events), default=0)
    for event in found.events:
        lines = event.lines[SAID_FIRST.get(event.what, 0) :]
        yield (
            event,
            "\n".join(
                [f"{event.step:{width}}  {TELL[event.what](event)}", *(f"    {line}" for line in lines)]
            ),
        )
