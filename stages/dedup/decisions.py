"""Makes one decision (keep or drop) per row, from similar pairs and a total keep order. Shard order does not matter.

An edge is a similar pair. A place is a row's index in the keep order, 0 is the best: in an edge (a, b) with a < b, a is
the better row. The witness of a dropped row is the row that it duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import ShardWriter, ref, reference_columns
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.row import DONORS, TEXTS
from vlpipe.stages.dedup.edges import KINDS, Edges, Places
from vlpipe.stages.dedup.image_counts import COUNTS, image_counts, with_counts
from vlpipe.stages.dedup.row_ids import Names

DECISIONS = pa.schema(
    [
        ("id", pa.string()),
        ("keep", pa.bool_()),
        # exact_duplicate | near_duplicate; for a kept row: why it could not be compared, or null
        ("why", pa.string()),
        # id of the row that it duplicates, which is a kept row except with rule `semdedup`; null for kept rows
        ref("witness", pa.string()),
        ("similarity", pa.float32()),  # to the witness, 1 is equal; null if the two were not compared
        # id of the kept row that represents it: itself, or the end of its chain of witnesses
        ref("group", pa.string()),
        ("gained", TEXTS),  # texts that a kept row gets from dropped rows of its group; null if none
        ref("donors", DONORS),  # for each of these texts, the ids of the dropped rows that have it
        # of the rows with the same `group`, see `image_counts`: rows, distinct hosts (null without `url`) and distinct texts
        # (null without `texts`)
        ("image_rows", pa.int64()),
        ("image_hosts", pa.int64()),
        ("image_texts", pa.int64()),
    ]
)
DECISIONS_REFERENCES = {"decisions.parquet": reference_columns(DECISIONS)}
ROW_GROUP_ROWS = 65_536

Rule = Literal["greedy", "semdedup", "components"]


@dataclass(frozen=True, slots=True)
class DuplicateArrays:
    """The decisions on N rows: arrays (N,), indexed by place (position in the keep order)."""

    witness: Places  # place of the row that this row duplicates; -1 for kept rows
    similarity: npt.NDArray[np.float64]  # to the witness; NaN if the two were not compared
    why: npt.NDArray[np.object_]  # None for kept rows


def decide(num_rows: int, edges: Edges, rule: Rule) -> DuplicateArrays:
    """Returns the decisions. edges: between places (positions in the keep order).

    `rule` is applied to the best row of each set of identical rows. If that row is kept, the others of the set are its
    duplicates; if it is dropped, they are duplicates of the same row as it is.
    """
    leader = leaders(num_rows, edges)
    near = _near(edges, leader)
    witness = {"greedy": _greedy, "semdedup": _semdedup, "components": _components}[rule](num_rows, near)
    similarity = _similarity(witness, near, num_rows)
    copies = (leader != np.arange(num_rows)) & (witness[leader] < 0)
    why = np.full(num_rows, None, object)
    why[copies | (witness[leader] >= 0)] = "near_duplicate"
    why[copies & _same_bytes(num_rows, edges, leader)] = "exact_duplicate"
    witness, similarity = witness[leader], similarity[leader]
    witness[copies], similarity[copies] = leader[copies], 1.0
    return DuplicateArrays(witness, similarity, why)


def leaders(num_rows: int, edges: Edges) -> Places:
    """Returns, per place, the place of the best row identical to this row, (num_rows,); itself if there is none better."""
    same = edges.kind > 0
    centre, other = edges.a[same], edges.b[same]
    best = np.arange(num_rows)
    label = _smallest_label(num_rows, centre, other)
    np.minimum.at(best, label, np.arange(num_rows))
    found: Places = best[label]
    return found


def _same_bytes(num_rows: int, edges: Edges, leader: Places) -> npt.NDArray[np.bool_]:
    """Returns, per place, True if its row has the same bytes as its leader; False if only the same look or embedding."""
    same = edges.kind == KINDS.index("same_bytes")
    label = _smallest_label(num_rows, edges.a[same], edges.b[same])
    found: npt.NDArray[np.bool_] = label == label[leader]
    return found


def _near(edges: Edges, leader: Places) -> Edges:
    """Returns the edges between non-identical rows, each row replaced by its leader, as (better, worse), sorted."""
    near = edges.kind == 0
    ends = leader[edges.a[near]], leader[edges.b[near]]
    a, b = np.minimum(*ends), np.maximum(*ends)
    order = np.lexsort((b, a))
    return Edges(a[order], b[order], edges.similarity[near][order], edges.kind[near][order])


def _greedy(num_rows: int, edges: Edges) -> Places:
    """Goes through the rows in keep order; each row not dropped yet drops all similar rows after it.

    So every dropped row has a kept witness, and no two kept rows are similar. In a chain A~B~C with A best, B is
    dropped and C is kept: its only similar row is dropped already.
    """
    witness = np.full(num_rows, -1, np.int64)
    bounds = np.append(np.flatnonzero(np.diff(edges.a, prepend=-1)), len(edges.a))
    for start, stop in pairwise(bounds):
        better = edges.a[start]
        if witness[better] < 0:
            worse = edges.b[start:stop]
            witness[worse[witness[worse] < 0]] = better
    return witness


def _semdedup(num_rows: int, edges: Edges) -> Places:
    """Drops a row if any better row is similar, even a dropped one: of a chain A~B~C, A is kept.

    A. Abbas et al., "SemDeDup", 2023, https://arxiv.org/abs/2303.09540.
    """
    witness = np.full(num_rows, num_rows, np.int64)
    np.minimum.at(witness, edges.b, edges.a)
    witness[witness == num_rows] = -1
    return witness


def _components(num_rows: int, edges: Edges) -> Places:
    """Keeps the best row of each connected component."""
    label = _smallest_label(num_rows, edges.a, edges.b)
    return np.where(label == np.arange(num_rows), -1, label)


def _smallest_label(num_rows: int, a: Places, b: Places) -> Places:
    """Returns, per row, the smallest row number in its connected component."""
    label = np.arange(num_rows)
    while True:
        before = label.copy()
        low = np.minimum(label[a], label[b])
        np.minimum.at(label, label[a], low)
        np.minimum.at(label, label[b], low)
        label = np.minimum(label, label[label])
        if (label == before).all():
            return label


def _similarity(witness: Places, edges: Edges, num_rows: int) -> npt.NDArray[np.float64]:
    """Returns each row's similarity to the row that it duplicates (`witness`); NaN if no edge joins the two."""
    wanted = witness * num_rows + np.arange(num_rows)
    keys = edges.a * num_rows + edges.b
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    if not len(keys):
        return np.full(num_rows, np.nan)
    return np.where(keys[at] == wanted, edges.similarity[at], np.nan)


def stands_for(duplicates: DuplicateArrays) -> Places:
    """Returns, per place, the kept row that the row duplicates, directly or through other dropped rows; itself if kept."""
    group = np.where(duplicates.witness < 0, np.arange(len(duplicates.witness)), duplicates.witness)
    while (group[group] != group).any():
        group = group[group]
    return group


def groups_of(order: Places, duplicates: DuplicateArrays) -> Places:
    """Returns the result of `stands_for` in row numbers instead of places. order: as in `placed`."""
    group = np.empty_like(order)
    group[order] = order[stands_for(duplicates)]
    return group


def placed(edges: Edges, order: Places) -> Edges:
    """Converts edges between row numbers to edges between places in the keep order; `order[place]` is a row number."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return replace(edges, a=place[edges.a], b=place[edges.b])


def decision_table(ids: Names, order: Places, duplicates: DuplicateArrays, rows: Places) -> pa.Table:
    """Returns a table (columns: DECISIONS) with the decision on each of `rows`, which are row numbers.

    The table has one chunk per block, as a single string array cannot hold all ids. order: as in `placed`.
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    group = groups_of(order, duplicates)

    def block(rows: Places) -> pa.Table:
        witness, similarity = duplicates.witness[place[rows]], duplicates.similarity[place[rows]]
        keep = witness < 0
        columns = {
            "id": ids.take(rows),
            "keep": pa.array(keep),
            "why": pa.array(duplicates.why[place[rows]], pa.string()),
            "witness": pc.if_else(pa.array(keep), None, ids.take(order[witness])),
            "similarity": pa.array(similarity, mask=keep | np.isnan(similarity)),
            "group": ids.take(group[rows]),
            "gained": pa.nulls(len(rows), TEXTS),
            "donors": pa.nulls(len(rows), DONORS),
            **{name: pa.nulls(len(rows), pa.int64()) for name in COUNTS},
        }
        return pa.table(columns).cast(DECISIONS)

    starts = range(0, len(rows), ROW_GROUP_ROWS)
    return pa.concat_tables(
        [DECISIONS.empty_table(), *(block(rows[start : start + ROW_GROUP_ROWS]) for start in starts)]
    )


def decide_new(
    inputs: Sequence[Dataset], ids: Names, numbers: Places, keep_order: Places, edges: Edges
) -> pa.Table:
    """Returns DECISIONS of the rows of `inputs` by the rule "greedy". Rows of an earlier set are better than all of them.

    ids: of all rows, by row number. numbers: row numbers, those of `inputs` first, in input order. keep_order: the rows of
    `inputs`, best first. edges: between row numbers.
    """
    num_new = len(keep_order)
    new = numbers[:num_new]
    order = np.concatenate([np.arange(num_new, len(ids)), new[keep_order]])
    duplicates = decide(len(ids), placed(edges, order), "greedy")
    counts = image_counts(inputs, groups_of(order, duplicates)[new])
    return with_counts(decision_table(ids, order, duplicates, new), counts)


def write_decisions(folder: str, decisions: pa.Table) -> None:
    with ShardWriter(f"{folder}/decisions.parquet", DECISIONS, ROW_GROUP_ROWS) as writer:
        for start in range(0, decisions.num_rows, ROW_GROUP_ROWS):
            writer.write(decisions.slice(start, ROW_GROUP_ROWS))


def say_counts(decisions: pa.Table) -> str:
    """Returns one line for the log: rows, dropped rows, and the counts per `why`."""
    removed = decisions.num_rows - (pc.sum(decisions["keep"]).as_py() or 0)
    counts = [
        f"{c['values']} {c['counts']:,}" for c in decisions["why"].value_counts().to_pylist() if c["values"]
    ]
    return f"{decisions.num_rows:,} rows, {removed:,} to drop: {', '.join(sorted(counts)) or 'no duplicates'}"
