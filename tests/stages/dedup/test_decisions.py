from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.dedup.decisions import DECISIONS, Edges, decision_table, greedy, keep_order, read_rows


def edges(*pairs: tuple[int, int], similarity: float = 0.9) -> Edges:
    a, b = (np.array([p[side] for p in pairs], np.int64) for side in (0, 1))
    return Edges(a, b, np.full(len(pairs), similarity, np.float32))


def test_a_chain_loses_its_middle_when_the_end_is_best() -> None:
    # A~B~C, A not like C, A best: B goes, and C's only twin is gone. (SemDeDup would drop C as well.)
    assert greedy(3, edges((0, 1), (1, 2))).witness.tolist() == [-1, 0, -1]


def test_a_chain_loses_both_ends_when_the_middle_is_best() -> None:
    assert greedy(3, edges((0, 1), (0, 2))).witness.tolist() == [-1, 0, 0]


def test_a_removed_row_points_to_the_best_survivor() -> None:
    twins = greedy(4, edges((0, 3), (1, 3), (2, 3)))
    assert twins.witness.tolist() == [-1, -1, -1, 0]


def test_greedy_equals_the_plain_loop_on_random_graphs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        num = int(rng.integers(1, 30))
        pairs = [p for p in itertools.combinations(range(num), 2) if rng.random() < 0.15]
        rng.shuffle(pairs)
        kept: list[int] = []
        want = []
        for row in range(num):
            want.append(next((k for k in kept if (k, row) in set(pairs)), -1))
            if want[-1] < 0:
                kept.append(row)
        assert greedy(num, edges(*pairs)).witness.tolist() == want


def test_keep_order_is_pixels_then_url_then_id() -> None:
    rows = pa.table(
        {
            "id": ["e", "d", "c", "b", "a"],
            "url": ["u2", "u1", "u1", None, "u9"],
            "width": pa.array([10, 10, 10, 10, 20], pa.int32()),
            "height": pa.array([10, 10, 10, 10, 20], pa.int32()),
        }
    )
    assert [rows["id"][int(i)].as_py() for i in keep_order(rows)] == ["a", "b", "c", "d", "e"]


def test_keep_order_does_not_overflow_on_large_images() -> None:
    rows = pa.table(
        {
            "id": ["small", "large"],
            "width": pa.array([1, 60_000], pa.int32()),
            "height": pa.array([1, 60_000], pa.int32()),
        }
    )
    assert keep_order(rows).tolist() == [1, 0]


def test_decisions_come_in_input_order_with_witness_and_group() -> None:
    order = np.array([2, 0, 1])  # best is the third row
    table = decision_table(
        pa.chunked_array([["x", "y", "z"]]), order, greedy(3, edges((0, 2))), [None, None, "near_duplicate"]
    )
    assert table.schema == DECISIONS
    assert table.to_pylist() == [
        {"id": "x", "keep": True, "why": None, "witness": None, "similarity": None, "group": "x"},
        {
            "id": "y",
            "keep": False,
            "why": "near_duplicate",
            "witness": "z",
            "similarity": pytest.approx(0.9),
            "group": "z",
        },
        {"id": "z", "keep": True, "why": None, "witness": None, "similarity": None, "group": "z"},
    ]


def test_an_id_that_comes_twice_is_an_error(tmp_path) -> None:
    data = dataset(tmp_path, pa.table({"id": ["a", "b"]}))
    with pytest.raises(VlpipeError, match=r"2 id\(s\) come more than once in input, input"):
        read_rows([data, data])
