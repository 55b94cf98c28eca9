"""Histograms of a column of numbers, and what a moved threshold changes: how many values and rows go, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.rows.columns import Leaf, Values, find_leaf, leaves
from vlpipe.pipeline.inspect.rows.conditions import Condition, Queries
from vlpipe.pipeline.inspect.rows.table import RowTable

MAX_BINS = 400
MAX_PANELS = 8
OTHER = "others"
NULL = "null"


@dataclass(frozen=True, slots=True)
class Panel:
    """The values of one group, such as a source of texts. counts: fate (true, false, null) -> number of values per bin."""

    name: str
    num: int
    num_null: int
    counts: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """edges: (num_bins + 1,); panels: one per group; rows: (num_bins,), rows whose best value lies in the bin."""

    edges: list[float]
    panels: list[Panel]
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Moved:
    """What a threshold at `at` does. values_below, num_values: of the column; rows_below: rows whose best value is lower;
    num_rows: rows with a value."""

    at: float
    values_below: int
    num_values: int
    rows_below: int
    num_rows: int


def histogram(
    queries: Queries,
    table: RowTable,
    path: str,
    num_bins: int,
    by: str = "",
    conditions: Sequence[Condition] = (),
    span: tuple[float, float] | None = None,
) -> Histogram:
    """Returns the histogram of a column, one panel per value of column `by`, each value counted by its column `kept`.

    conditions: only rows and elements that meet these. span: the lowest and highest edge; None: 0 to 1 if all values are in
    it, else the smallest and largest value. Raises VlpipeError if the column does not hold numbers.
    """
    if not 1 <= num_bins <= MAX_BINS:
        raise VlpipeError(f"wanted 1 to {MAX_BINS} bins, got {num_bins}")
    leaf = number_leaf(table, path)
    values = queries.columns.values(table, leaf)
    chosen = queries.elements(table, leaf, conditions) if conditions else np.ones(len(values.data), bool)
    finite = np.isfinite(values.data)
    low, high = span or _span(values.data[finite & chosen])
    edges = np.linspace(low, high, num_bins + 1)
    groups = _groups(queries, table, leaf, by)
    fates = _fates(queries, table, leaf)
    panels = []
    for name, inside in groups:
        of_group = chosen & inside
        counts = {
            fate: np.histogram(values.data[of_group & finite & mask], edges)[0].tolist()
            for fate, mask in fates
        }
        panels.append(Panel(name, int(of_group.sum()), int((of_group & ~finite).sum()), counts))
    best = queries.best(table, path)
    if conditions:
        best = best[queries.mask(table, conditions)]
    return Histogram(
        edges.tolist(),
        [p for p in panels if p.num],
        np.histogram(best[np.isfinite(best)], edges)[0].tolist(),
    )


def moved(queries: Queries, table: RowTable, path: str, at: float) -> Moved:
    """Returns what a threshold on a column of numbers does: a value stays if it is at least `at`, a row if one of its
    values stays. Both searches are binary, in sorted values that are kept."""
    leaf = number_leaf(table, path)
    key = (table.store.url, table.version, "sorted", path)

    def load() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return _sorted(queries.columns.values(table, leaf).data), _sorted(queries.best(table, path))

    values, best = queries.columns.cache.get(key, load, lambda both: int(both[0].nbytes + both[1].nbytes))
    cut = values.dtype.type(at)
    return Moved(
        at, int(np.searchsorted(values, cut)), len(values), int(np.searchsorted(best, cut)), len(best)
    )


def number_leaf(table: RowTable, path: str) -> Leaf:
    """Returns the column of numbers of this path. Raises VlpipeError if there is none."""
    leaf = find_leaf(table.light, path)
    if not leaf.is_number:
        raise VlpipeError(f"column {path!r} holds {leaf.dtype}, wanted numbers")
    return leaf


def _sorted(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.sort(values[np.isfinite(values)])


def _span(values: npt.NDArray[Any]) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _groups(
    queries: Queries, table: RowTable, leaf: Leaf, by: str
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Returns (name, mask over the values of the column) per group."""
    size = len(queries.columns.values(table, leaf).data)
    everything = [("", np.ones(size, bool))]
    if not by:
        return everything
    other = find_leaf(table.light, by)
    if other.is_number or not queries.columns.is_coded(table, other):
        raise VlpipeError(f"cannot group by {by!r}: wanted a column of few texts")
    codes = _beside(queries.columns.values(table, other), leaf, other)
    names = queries.columns.values(table, other).names or ()
    if codes is None:
        raise VlpipeError(f"cannot group {leaf.path!r} by {by!r}: they are in different lists")
    num = np.bincount(codes[codes >= 0].astype(np.int64), minlength=len(names))
    shown = np.argsort(-num, kind="stable")[:MAX_PANELS]
    found = [(names[k], codes == k) for k in sorted(shown.tolist(), key=lambda k: names[k])]
    rest = np.isin(codes, [*shown.tolist(), -1], invert=True)
    return [*found, (NULL, codes < 0), (OTHER, rest)]


def _beside(values: Values, leaf: Leaf, other: Leaf) -> npt.NDArray[Any] | None:
    return values.data if leaf.in_list == other.in_list else None


def _fates(queries: Queries, table: RowTable, leaf: Leaf) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Returns the masks of values kept, dropped and not judged: by the column `kept` or `keep` beside the column, if any."""
    above = leaf.path.rpartition(".")[0]
    known = {one.path: one for one in leaves(table.light)}
    for name in ("kept", "keep"):
        one = known.get(f"{above}.{name}" if above else name)
        if one is not None and one.in_list == leaf.in_list:
            values = queries.columns.values(table, one)
            kept = np.array([{"true": 1, "false": 0}.get(text, -1) for text in values.names or ()] + [-1])
            codes = kept[values.data]
            return [("true", codes == 1), ("false", codes == 0), (NULL, codes < 0)]
    return [(NULL, np.ones(len(queries.columns.values(table, leaf).data), bool))]
