from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    DuplicateArrays,
    decide,
    decision_table,
    placed,
    stands_for,
)
from vlpipe.stages.dedup.edges import Edges
from vlpipe.stages.dedup.image_counts import COUNTS
from vlpipe.stages.dedup.row_ids import Names, packed


def edges(*pairs: tuple[int, int], similarity: float = 0.9, same: tuple[tuple[int, int], ...] = ()) -> Edges:
    a, b = (np.array([p[side] for p in (*pairs, *same)], np.int64) for side in (0, 1))
    kind = np.array([0] * len(pairs) + [1] * len(same), np.int8)
    return Edges(a, b, np.where(kind == 0, similarity, 1.0), kind)


def witness(num_rows: int, edges: Edges, rule: str) -> list[int]:
    return decide(num_rows, edges, rule).witness.tolist()


@pytest.mark.parametrize(
    ("rule", "pairs", "kept"),
    [  # a chain A~B~C, A not like C, as the keep order has its rows; 0 is the best
        ("greedy", [(0, 1), (1, 2)], [0, 2]),  # A, B, C
        ("semdedup", [(0, 1), (1, 2)], [0]),
        ("components", [(0, 1), (1, 2)], [0]),
        ("greedy", [(0, 2), (1, 2)], [0, 1]),  # A, C, B
        ("semdedup", [(0, 2), (1, 2)], [0, 1]),
        ("components", [(0, 2), (1, 2)], [0]),
        ("greedy", [(0, 1), (0, 2)], [0]),  # B, A, C
        ("semdedup", [(0, 1), (0, 2)], [0]),
        ("components", [(0, 1), (0, 2)], [0]),
    ],
)
def test_a_chain_by_each_rule(rule: str, pairs: list[tuple[int, int]], kept: list[int]) -> None:
    got = witness(3, edges(*pairs), rule)
    assert [row for row in range(3) if got[row] < 0] == kept


def test_a_removed_row_points_to_the_best_survivor() -> None:
    assert witness(4, edges((0, 3), (1, 3), (2, 3)), "greedy") == [-1, -1, -1, 0]


def plain(num: int, pairs: set[tuple[int, int]], rule: str) -> list[int]:
    """Each rule as its definition says it, row by row."""
    got: list[int] = []
    for row in range(num):
        if rule == "greedy":
            better = [k for k in range(row) if got[k] < 0 and (k, row) in pairs]
        elif rule == "semdedup":
            better = [k for k in range(row) if (k, row) in pairs]
        else:
            reached, todo = {row}, [row]
            while todo:
                now = todo.pop()
                near = {b if a == now else a for a, b in pairs if now in (a, b)} - reached
                reached |= near
                todo += near
            better = [k for k in reached if k < row]
        got.append(min(better, default=-1))
    return got


@pytest.mark.parametrize("rule", ["greedy", "semdedup", "components"])
def test_each_rule_equals_its_definition_on_random_graphs(rule: str) -> None:
    rng = np.random.default_rng(0)
    dropped = 0
    for _ in range(50):
        num = int(rng.integers(1, 30))
        pairs = [p for p in itertools.combinations(range(num), 2) if rng.random() < 0.08]
        want = plain(num, set(pairs), rule)
        dropped += sum(w >= 0 for w in want)
        rng.shuffle(pairs)
        assert witness(num, edges(*pairs), rule) == want
    assert dropped > 100


@pytest.mark.parametrize("rule", ["greedy", "semdedup", "components"])
def test_one_edge_per_copy_decides_as_all_pairs_of_copies_would(rule: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        num = int(rng.integers(2, 25))
        value = rng.integers(0, 12, num)  # rows of one value are the same
        near = {p for p in itertools.combinations(range(12), 2) if rng.random() < 0.12}
        alike = [p for p in itertools.combinations(range(num), 2) if value[p[0]] == value[p[1]]]
        close = [
            p for p in itertools.combinations(range(num), 2) if tuple(sorted(value[list(p)].tolist())) in near
        ]
        stand = {v: int(rng.choice(np.flatnonzero(value == v))) for v in set(value.tolist())}
        short = [tuple(sorted((stand[a], stand[b]))) for a, b in near if a in stand and b in stand]
        stars = tuple((r, stand[v]) for r, v in enumerate(value.tolist()) if stand[v] != r)
        assert witness(num, edges(*short, same=stars), rule) == plain(num, {*alike, *close}, rule)


def test_copies_are_called_exact_only_when_their_bytes_were_compared() -> None:
    bytes_ = Edges(np.array([0]), np.array([1]), np.ones(1), np.array([2], np.int8))
    assert decide(2, bytes_, "greedy").why.tolist() == [None, "exact_duplicate"]
    assert decide(2, edges(same=((0, 1),)), "greedy").why.tolist() == [None, "near_duplicate"]


def test_rows_that_were_not_compared_have_no_similarity() -> None:
    twins = decide(3, edges((0, 1), (1, 2)), "components")
    np.testing.assert_array_equal(twins.similarity[1:], [0.9, np.nan])


def test_the_group_of_a_chain_is_the_row_that_stays() -> None:
    twins = DuplicateArrays(np.array([-1, 0, 1, 2]), np.ones(4), np.array([None] * 4))
    assert stands_for(twins).tolist() == [0, 0, 0, 0]


def test_decisions_come_by_row_number_with_witness_and_group() -> None:
    order = np.array([2, 0, 1])  # best is the third row
    twins = decide(3, placed(edges((1, 2)), order), "greedy")
    table = decision_table(Names(packed([pa.array(["x", "y", "z"])])), order, twins, np.arange(3))
    assert table.schema == DECISIONS
    empty = {"why": None, "witness": None, "similarity": None, "gained": None, "donors": None}
    empty |= dict.fromkeys(COUNTS)
    assert table.to_pylist() == [
        {"id": "x", "keep": True, **empty, "group": "x"},
        {
            **empty,
            "id": "y",
            "keep": False,
            "why": "near_duplicate",
            "witness": "z",
            "similarity": pytest.approx(0.9),
            "group": "z",
        },
        {"id": "z", "keep": True, **empty, "group": "z"},
    ]
