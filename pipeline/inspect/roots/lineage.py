"""The way of one row through the steps of a root, by records alone.

A receipt of a map step names the digest of the shard that it was made from, so a row is followed from shard to shard: up to
where it entered, then down through every step. Only gather steps (deduplication, say) are searched by id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.records.rejects import read_rejects
from vlpipe.pipeline.inspect.roots.state import RootState, StepState
from vlpipe.pipeline.inspect.rows.table import open_rows
from vlpipe.pipeline.inspect.why import changes, rows_where
from vlpipe.pipeline.storage.printable import cell
from vlpipe.pipeline.storage.store import Store

MAX_CHILDREN = 12
ID = "id: string"
PARENT = "parent: string"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What a step did with the row. what: new, changed, same (it is in the output), dropped, decided (a gather step has a
    row about it), children (the step made rows of it), read (a training or another gather step read it), pending (its shard
    is not there yet). at: position of the row in the step, None if it is not in it. lines: what changed, or the reason.
    children: ids of rows made from it."""

    folder: str
    what: str
    at: int | None = None
    lines: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    row_id: str = ""


class Search(Protocol):
    """Where rows, rejects and children of an id are looked up."""

    def row(
        self, one: StepState, receipts: Sequence[Receipt], id_: str, is_map: bool
    ) -> tuple[Receipt, int, Mapping[str, Any]] | None:
        """Returns (receipt of its shard, position in the step, row), None if none of the shards has it.
        is_map: `receipts` are those of the shards that the row's shard became."""

    def reject(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> Mapping[str, Any] | None:
        """Returns the reject of the id, None if there is none."""

    def children(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> list[str]:
        """Returns the ids of the rows whose parent it is."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Looks in the files of the root, for one id at a time."""

    store: Store

    def row(
        self, one: StepState, receipts: Sequence[Receipt], id_: str, is_map: bool
    ) -> tuple[Receipt, int, Mapping[str, Any]] | None:
        for receipt in self._candidates(one, receipts, id_, is_map):
            row = next(rows_where(self.store, receipt, "id", id_), None)
            if row is not None:
                before = sum(r.shard.num_rows for r in one.receipts if r.index < receipt.index)
                return receipt, before + open_rows(self.store, one.folder, [receipt]).find([id_])[id_], row
        return None

    def _candidates(
        self, one: StepState, receipts: Sequence[Receipt], id_: str, is_map: bool
    ) -> Iterator[Receipt]:
        """Yields the receipts of shards that may have the row: the one it goes to, else the one that has its id."""
        if is_map:
            yield from receipts
            return
        table = open_rows(self.store, one.folder, receipts)
        at = table.find([id_]).get(id_)
        if at is not None:
            yield receipts[table.shard_of(at)[0]]

    def reject(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> Mapping[str, Any] | None:
        for receipt in receipts:
            if receipt.rejects:
                table = read_rejects(self.store, one.folder, receipt.index)
                for reject in table.filter(pc.equal(table["id"], id_)).to_pylist():
                    return reject
        return None

    def children(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> list[str]:
        return [row["id"] for r in receipts for row in rows_where(self.store, r, "parent", id_)]


@dataclass(frozen=True, slots=True)
class _Place:
    receipt: Receipt
    row: Mapping[str, Any]


@dataclass
class _Way:
    """Follows one id. places: folder -> where the row is."""

    search: Search
    id: str
    places: dict[str, _Place] = field(default_factory=dict)

    def step(self, one: StepState) -> Passed | None:
        """Returns what the step did; None if the row did not reach it."""
        came = next((folder for folder in one.inputs if folder in self.places), None)
        if one.inputs and came is None and not _makes_rows(one):
            return None
        before = self.places[came] if came else None
        is_map = before is not None and not one.is_gather
        receipts = list(one.receipts)
        if is_map and before is not None:
            receipts = [r for r in receipts if r.input_digest == before.receipt.shard.digest]
        found = self.search.row(one, receipts, self.id, is_map) if ID in one.columns else None
        if found is not None:
            return self._here(one, *found, before)
        return self._not_here(one, receipts, before)

    def _here(
        self, one: StepState, receipt: Receipt, at: int, row: Mapping[str, Any], before: _Place | None
    ) -> Passed:
        old = {} if before is None else before.row
        decided = one.is_gather and before is not None and "keep" in row
        lines = changes({} if decided else dict(old), dict(row))
        if before is not None and not one.is_gather:
            lines += [
                f"- {name}" for name in old if name not in row and f"{name}: " not in "".join(one.columns)
            ]
        what = "decided" if decided else "new" if before is None else "changed" if lines else "same"
        if not decided:
            self.places[one.folder] = _Place(receipt, row)
        return Passed(folder=one.folder, what=what, at=at, lines=tuple(lines), row_id=self.id)

    def _not_here(self, one: StepState, receipts: Sequence[Receipt], before: _Place | None) -> Passed | None:
        reject = self.search.reject(one, receipts, self.id)
        if reject is not None:
            why = f"{reject['kind']}: {reject['why']}"
            detail = [cell(reject["detail"], 2000)] if reject["detail"] else []
            return Passed(folder=one.folder, what="dropped", lines=(why, *detail), row_id=self.id)
        if before is None:
            return None
        if not receipts:
            if one.state == "done":
                return Passed(folder=one.folder, what="read", row_id=self.id)
            return Passed(folder=one.folder, what="pending", row_id=self.id)
        if PARENT in one.columns and not one.is_gather:
            ids = self.search.children(one, receipts, self.id)
            return Passed(
                folder=one.folder,
                what="children",
                lines=(f"{len(ids):,} row(s) made from it",),
                children=tuple(ids[:MAX_CHILDREN]),
                row_id=self.id,
            )
        return Passed(folder=one.folder, what="read" if one.is_gather else "pending", row_id=self.id)


def _makes_rows(one: StepState) -> bool:
    """True if rows may enter at this step although it has inputs: it makes children, or gathers."""
    return PARENT in one.columns or (one.is_gather and ID in one.columns)


def lineage(search: Search, state: RootState, id_: str, start: str = "") -> list[Passed]:
    """Returns what each step of the last run did with the row `id_`, steps in order. If it was made from a parent row, what
    happened to that comes first. search: `OnDisk(store)`, or rows of many ids that were read before. start: a folder that
    has the row or rejected it, so that no step has to be searched.

    Empty if no step has the row.
    """
    steps = _related(state, start)
    way = _Way(search, id_)
    found: list[Passed] = []
    entered = False
    for one in steps:
        if entered or _may_enter(one):
            passed = way.step(one)
            if passed is not None:
                found.append(passed)
                entered = entered or bool(way.places)
    parent = next((p.row.get("parent") for p in way.places.values() if p.row.get("parent")), None)
    if isinstance(parent, str) and parent != id_:
        first = next(iter(way.places))
        above = state.step(first).inputs
        return [*lineage(search, state, parent, above[0] if above else ""), *found]
    return found


def _may_enter(one: StepState) -> bool:
    """True if rows enter the run at this step: it has no inputs, or makes rows of its own."""
    return not one.inputs or _makes_rows(one)


def _related(state: RootState, start: str) -> list[StepState]:
    """Returns the steps of the last run; if `start` is a folder of an earlier one, that step and all it was made from."""
    if not start or state.step(start).is_current:
        return [one for one in state.steps if one.is_current]
    wanted, todo = set[str](), [start]
    while todo:
        folder = todo.pop()
        if folder not in wanted:
            wanted.add(folder)
            todo += state.step(folder).inputs
    return [one for one in state.steps if one.folder in wanted]
