"""Which rows a bundle has: the same ones in all steps, so that a row's way can be followed.

Evenly spaced rows of the steps where rows enter; of each later step those of them that it has, and more where these are
few; some rejects of each reason; some pairs of duplicates. Two passes over the ids of each step, whatever their number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.inspect.roots.lineage import ID, PARENT
from vlpipe.pipeline.inspect.roots.state import RootState, StepState
from vlpipe.pipeline.inspect.rows.conditions import Condition
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.parquet.file import Parquet
from vlpipe.pipeline.ui.row_sources import rows_of
from vlpipe.pipeline.ui.row_views import duplicates_view
from vlpipe.pipeline.ui.run_views import kind_of_rows
from vlpipe.pipeline.ui.site import Query, Root, Site

LEAST = 0.25  # of the asked number of rows, in a step that has as many
PER_REASON = 6  # rejects
PAIRS = 24  # of duplicates, the most alike and the least alike ones

Row = Mapping[str, Any]


@dataclass
class StepSample:
    """rows: id -> (position, row), of a step whose rows have ids; others: (position, row) of those without. rejects:
    position -> reject. born: parent -> ids made of it. pairs: as the view of duplicates has them."""

    rows: dict[str, tuple[int, Row]] = field(default_factory=dict)
    others: list[tuple[int, Row]] = field(default_factory=list)
    rejects: dict[int, Row] = field(default_factory=dict)
    born: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def listed(self) -> list[tuple[int, Row]]:
        """Returns all (position, row) in the order of the step."""
        return sorted([*self.rows.values(), *self.others], key=lambda item: item[0])


@dataclass
class Sample:
    """The sampled rows of the last run's steps, by folder. It is a `lineage.Search` among them."""

    steps: dict[str, StepSample] = field(default_factory=dict)

    def ids(self) -> list[str]:
        """Returns the ids of all rows and rejects, in the order of the steps."""
        each = (
            id_
            for one in self.steps.values()
            for id_ in (*one.rows, *(str(reject["id"]) for reject in one.rejects.values()))
        )
        return list(dict.fromkeys(each))

    def row(
        self, one: StepState, receipts: Sequence[Receipt], id_: str, is_map: bool
    ) -> tuple[Receipt, int, Row] | None:
        found = self._of(one).rows.get(id_)
        if found is None:
            return None
        starts = np.cumsum([0, *(r.shard.num_rows for r in one.receipts)]).tolist()
        receipt = one.receipts[bisect_right(starts, found[0]) - 1]
        return (receipt, *found) if any(r.index == receipt.index for r in receipts) else None

    def reject(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> Row | None:
        return next((reject for reject in self._of(one).rejects.values() if reject["id"] == id_), None)

    def children(self, one: StepState, receipts: Sequence[Receipt], id_: str) -> list[str]:
        return self._of(one).born.get(id_, [])

    def _of(self, one: StepState) -> StepSample:
        return self.steps.get(one.folder, StepSample())


def take_sample(site: Site, root: Root, state: RootState, num_rows: int) -> Sample:
    """Returns the sample of the steps of the last run. num_rows: of each step where rows enter, about."""
    steps = [one for one in state.steps if one.is_current]
    pairs = {one.folder: _pairs(site, root, one) for one in steps if kind_of_rows(one) == "decisions"}
    ids = {id_: None for found in pairs.values() for pair in found for id_ in _ids_of(pair)}
    chosen: dict[str, list[int]] = {}  # of rejects
    for one in steps:
        if ID in one.columns and one.rows_out:
            ids |= dict.fromkeys(_more(rows_of(root, one.folder), one, ids, num_rows))
        if one.rejects:
            chosen[one.folder] = _rejects(site, root, one)
            table = rows_of(root, one.folder, "rejects")
            ids |= dict.fromkeys(row["id"] for row in table.rows(chosen[one.folder], ["id"]))
    found = Sample()
    for one in steps:
        sample = found.steps[one.folder] = _gathered(root, one, list(ids), num_rows)
        sample.pairs = pairs.get(one.folder, [])
        if one.rejects:
            table = rows_of(root, one.folder, "rejects")
            at = sorted({*chosen[one.folder], *table.find(list(ids)).values()})
            sample.rejects = dict(zip(at, table.rows(at), strict=True))
    return found


def evenly(total: int, num: int) -> list[int]:
    """Returns at most `num` numbers below `total`, evenly spaced, the first among them."""
    return np.unique(np.linspace(0, total - 1, min(num, total)).astype(int)).tolist() if total else []


def _more(table: RowTable, one: StepState, ids: Iterable[str], num_rows: int) -> Iterator[str]:
    """Yields ids to add: of `num_rows` rows where rows enter, else as many as a step lacks of LEAST of that; and the
    parents of rows that were made from others."""
    enters = not one.inputs or PARENT in one.columns
    has = len(table.find(list(ids))) if not enters else 0
    wanted = num_rows if enters else max(0, round(LEAST * num_rows) - has)
    for row in table.rows(evenly(table.num_rows, wanted), ["id", "parent"]):
        yield row["id"]
        if isinstance(row.get("parent"), str):
            yield row["parent"]


def _rejects(site: Site, root: Root, one: StepState) -> list[int]:
    table = rows_of(root, one.folder, "rejects")
    found: set[int] = set()
    for why in {code.partition(":")[2] for code in one.rejects}:
        at = site.queries.matching(table, [Condition("why", "=", why)])
        assert at is not None
        found |= {int(at[k]) for k in evenly(len(at), PER_REASON)}
    return sorted(found)


def _gathered(root: Root, one: StepState, ids: Sequence[str], num_rows: int) -> StepSample:
    if not one.rows_out:
        return StepSample()
    table = rows_of(root, one.folder)
    if ID not in one.columns:
        at = evenly(table.num_rows, num_rows)
        return StepSample(others=list(zip(at, table.rows(at), strict=True)))
    places = sorted(table.find(ids).items(), key=lambda item: item[1])
    rows = table.rows([at for _, at in places])
    born: dict[str, list[str]] = {}
    if PARENT in one.columns:
        for parent, child in _born(table, ids):
            born.setdefault(parent, []).append(child)
    return StepSample(
        rows={id_: (at, row) for (id_, at), row in zip(places, rows, strict=True)},
        born=born,
    )


def _born(table: RowTable, ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (parent, id) of the rows made from one of `ids`."""
    wanted = pa.array(ids, pa.string())

    def look(file: Parquet) -> list[tuple[str, str]]:
        both = file.read(columns=["id", "parent"], use_threads=False)
        both = both.filter(pc.is_in(both["parent"], wanted))
        return list(zip(both["parent"].to_pylist(), both["id"].to_pylist(), strict=True))

    for found in table.each_shard(look):
        yield from found


def _pairs(site: Site, root: Root, one: StepState) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for sort in ("-similarity", "similarity"):
        asked = Query({"step": [one.folder], "n": [str(PAIRS)], "sort": [sort]})
        for pair in duplicates_view(site, root, asked)["pairs"]:
            found.setdefault(pair["decision"]["id"], pair)
    return [*found.values()]


def _ids_of(pair: Mapping[str, Any]) -> list[str]:
    decision = pair["decision"]
    return [one for one in (decision["id"], decision["witness"]) if isinstance(one, str)]
