"""Views of rows: pages with conditions, one row, histograms, thresholds, duplicates side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.rows.columns import find_leaf
from vlpipe.pipeline.inspect.rows.conditions import Condition, parse_condition
from vlpipe.pipeline.inspect.rows.histograms import histogram, moved
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.ui.drawn import boxes_of, cues_of, has_media
from vlpipe.pipeline.ui.row_sources import before_reject, filterable, places, rows_of
from vlpipe.pipeline.ui.shapes import on_page, plain
from vlpipe.pipeline.ui.site import BadRequest, Query, Root, Site

MAX_PAGE = 200
MAX_NAMES = 50  # values of a text column that are offered


def rows_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns a page of the rows that meet the conditions: `start` and `n` count these rows, `c` is one condition each."""
    table = rows_of(root, query.text("step"), query.text("part", "rows"))
    start, num = query.whole("start", 0), query.whole("n", 48, MAX_PAGE)
    conditions = conditions_of(query)
    found = site.queries.matching(table, conditions, query.text("sql", ""), query.text("sort", ""))
    total = table.num_rows if found is None else len(found)
    stop = min(start + num, total)
    at = list(range(start, stop)) if found is None else found[start:stop].tolist()
    rows = table.rows(at)
    page = [{"at": place, "row": on_page(row)} for place, row in zip(at, rows, strict=True)]
    if query.text("part", "rows") == "rejects":
        one = root.reader.state().step(query.text("step"))
        for item, row in zip(page, rows, strict=True):
            item["before"] = _with_row(root, before_reject(root, one, table, item["at"], row["id"]))
    return {
        "total": total,
        "all": table.num_rows,
        "start": start,
        "rows": page,
        "heavy": list(table.heavy),
        "columns": filterable(table),
    }


def _with_row(root: Root, place: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the place with the row there, and the heavy columns that it has."""
    if place is None:
        return None
    table = rows_of(root, place["step"])
    return {**place, "row": on_page(table.rows([place["at"]])[0]), "heavy": list(table.heavy)}


def conditions_of(query: Query) -> list[Condition]:
    return [parse_condition(text) for text in query.all("c") if text.strip()]


def row_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns one row, by its position `at`, or its `id`; with boxes on its image, and whether it has a video."""
    folder = query.text("step")
    table = rows_of(root, folder)
    if query.text("at", ""):
        at = query.whole("at")
    else:
        found = table.find([query.text("id")])
        if not found:
            raise BadRequest("the step has no row with this id")
        at = next(iter(found.values()))
    row = table.rows([at])[0]
    return {
        "at": at,
        "all": table.num_rows,
        "row": {name: plain(value) for name, value in row.items()},
        "heavy": list(table.heavy),
        "boxes": boxes_of(site, table, at, row),
        "media": has_media(root, folder, row),
        "cues": len(cues_of(row)),
    }


def values_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns the values of a text column and how often each occurs, most frequent first; none if there are many."""
    table = rows_of(root, query.text("step"), query.text("part", "rows"))
    leaf = find_leaf(table.light, query.text("column"))
    if leaf.is_number or not site.queries.columns.is_coded(table, leaf):
        return {"values": []}
    values = site.queries.columns.values(table, leaf)
    codes = values.data
    names = values.names or ()
    counted = sorted(((int((codes == k).sum()), name) for k, name in enumerate(names)), reverse=True)
    return {
        "values": [[plain(name, 200), num] for num, name in counted[:MAX_NAMES]],
        "null": int((codes < 0).sum()),
    }


def histogram_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns the histogram of a column of numbers, grouped by the column `by`."""
    table = rows_of(root, query.text("step"))
    path = query.text("column")
    span = (query.number("low"), query.number("high")) if query.text("low", "") else None
    if span and not span[0] < span[1]:
        raise BadRequest("wanted low < high")
    found = histogram(
        site.queries, table, path, query.whole("bins", 50), query.text("by", ""), conditions_of(query), span
    )
    return asdict(found)


def moved_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns what a threshold `at` on a column does, and the first rows that change if it moves there `from` another."""
    table = rows_of(root, query.text("step"))
    path, at = query.text("column"), query.number("at")
    found: dict[str, Any] = asdict(moved(site.queries, table, path, at))
    if query.text("from", ""):
        found |= _between(
            site, table, path, sorted((query.number("from"), at)), query.whole("n", 12, MAX_PAGE)
        )
    return found


def _between(site: Site, table: RowTable, path: str, span: Sequence[float], num: int) -> dict[str, Any]:
    conditions = [Condition(f"{path}.max", ">=", repr(span[0])), Condition(f"{path}.max", "<", repr(span[1]))]
    rows = site.queries.matching(table, conditions)
    assert rows is not None
    at = rows[:num].tolist()
    page = [{"at": k, "row": on_page(row)} for k, row in zip(at, table.rows(at), strict=True)]
    return {
        "moved": len(rows),
        "rows": page,
        "c": [str(one) for one in conditions],
        "heavy": list(table.heavy),
    }


def duplicates_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns pairs (row that a deduplication drops, row that it duplicates), both as the step read them."""
    folder = query.text("step")
    one, table = root.reader.state().step(folder), rows_of(root, query.text("step"))
    if "witness" not in table.light.names:
        raise VlpipeError(
            f"the rows of {one.name} are no decisions about duplicates: they have no column 'witness'"
        )
    conditions = [Condition("keep", "=", "false"), *conditions_of(query)]
    found = site.queries.matching(table, conditions, order=query.text("sort", "-similarity"))
    assert found is not None
    start, num = query.whole("start", 0), query.whole("n", 12, MAX_PAGE)
    decisions = table.rows(found[start : start + num].tolist())
    ids = [id_ for row in decisions for id_ in (row["id"], row["witness"]) if id_]
    at = places(root, one.inputs, ids)
    pairs = [
        {
            "decision": on_page(row),
            "row": _with_row(root, at.get(row["id"])),
            "witness": _with_row(root, at.get(row["witness"])),
        }
        for row in decisions
    ]
    return {"total": len(found), "start": start, "pairs": pairs}
