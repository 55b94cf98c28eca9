from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import DONORS, TEXTS, text
from vlpipe.stages.dedup.apply import DropDuplicates
from vlpipe.stages.dedup.edges import Edges, edges_of, read_edges, write_edges
from vlpipe.stages.dedup.redecide import Decide
from vlpipe.stages.dedup.row_ids import Names, packed

IDS = ["a", "b", "c", "d"]
ROWS = pa.table({"id": IDS, "score": pa.array([0.4, 0.3, 0.2, 0.1])})
CHAIN = Edges(np.array([0, 1]), np.array([1, 2]), np.array([0.95, 0.9]), np.zeros(2, np.int8))


def searched(folder: Path, edges: Edges = CHAIN, ids: list[str] = IDS, num_new: int = 4) -> File:
    folder.mkdir(parents=True)
    write_edges(str(folder), Names(packed([pa.array(ids)])), num_new, edges, 0.9)
    return File(path=str(folder))


def decided(tmp_path: Path, rows: pa.Table = ROWS, **parameters: Any) -> dict[str, dict[str, Any]]:
    if "edges" not in parameters:
        parameters["edges"] = searched(tmp_path / "edges")
    got = run_gather(Decide(**parameters), [dataset(tmp_path, rows, shard_rows=3)], tmp_path / "step")
    assert pq.read_table(got.artifacts / "decisions.parquet").equals(got.table)
    return {row["id"]: row for row in got.table.to_pylist()}


def kept(decisions: dict[str, dict[str, Any]]) -> str:
    return "".join(i for i, row in decisions.items() if row["keep"])


@pytest.mark.parametrize(
    ("parameters", "want"),
    [
        ({}, "acd"),
        ({"rule": "semdedup"}, "ad"),
        ({"rule": "components"}, "ad"),
        ({"threshold": 0.95}, "acd"),
        ({"threshold": 0.95, "rule": "components"}, "acd"),
        ({"threshold": 0.96}, "abcd"),
        ({"keep": ("score",)}, "acd"),  # c, b, a: c takes b out, a stays
        ({"keep": ({"id": ("b",)},)}, "bd"),
    ],
)
def test_another_threshold_rule_or_order_from_the_same_pairs(
    tmp_path: Path, parameters: dict[str, Any], want: str
) -> None:
    assert kept(decided(tmp_path, **parameters)) == want


def test_semdedup_says_whose_twin_a_row_is_and_who_stands_for_it(tmp_path: Path) -> None:
    row = decided(tmp_path, rule="semdedup")["c"]
    assert (row["witness"], row["group"], row["similarity"]) == ("b", "a", pytest.approx(0.9))
    row = decided(tmp_path / "2", rule="components")["c"]
    assert (row["witness"], row["group"], row["similarity"]) == ("a", "a", None)


def test_a_threshold_below_the_search_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        VlpipeError, match=r"threshold 0\.85 is below 0\.9, the threshold of the search; search again"
    ):
        decided(tmp_path, threshold=0.85)


def test_pairs_of_other_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"1 id\(s\) in the pairs are not among the rows"):
        decided(tmp_path, ROWS.slice(1))


def test_the_wrong_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        VlpipeError, match=r"edges: .*other is not the output of dedup.faiss or dedup.exact .*\{from: STEP\}"
    ):
        decided(tmp_path, edges=File(path=str(tmp_path / "other")))


def test_the_keep_order_is_checked_without_data() -> None:
    with pytest.raises(SchemaError, match=r"dedup\.redecide: keep: 'scor' is neither a column that can"):
        Decide(edges=File(path="x"), keep=("scor desc",)).schema(ROWS.schema)
    with pytest.raises(SchemaError, match=r"dedup\.redecide \(merge_texts\) reads column 'texts'"):
        Decide(edges=File(path="x"), merge_texts=True).schema(ROWS.schema)


def test_edges_survive_a_file_in_their_order(tmp_path: Path) -> None:
    mixed = Edges(np.array([2, 0]), np.array([3, 1]), np.array([1.0, 0.93]), np.array([1, 0], np.int8))
    table, threshold = read_edges(searched(tmp_path / "edges", mixed, num_new=3))
    assert threshold == 0.9
    assert table.select(["a", "b", "similarity", "kind", "earlier"]).to_pylist() == [
        {"a": "a", "b": "b", "similarity": 0.93, "kind": "near", "earlier": False},
        {"a": "c", "b": "d", "similarity": 1.0, "kind": "same_vector", "earlier": True},
    ]
    again = edges_of(table, Names(packed([pa.array(IDS)])))
    assert (again.a.tolist(), again.b.tolist(), again.kind.tolist()) == ([0, 2], [1, 3], [0, 1])


@pytest.mark.parametrize("rule", ["greedy", "semdedup", "components"])
def test_an_earlier_row_is_never_dropped_and_may_be_the_witness(tmp_path: Path, rule: str) -> None:
    pairs = Edges(np.array([0, 1, 0]), np.array([1, 2, 3]), np.full(3, 0.9), np.zeros(3, np.int8))
    edges = searched(tmp_path / "edges", pairs, num_new=2)  # c and d are of the earlier set
    got = decided(tmp_path, ROWS.slice(0, 2), edges=edges, rule=rule)
    assert kept(got) == ""
    assert {row["group"] for row in got.values()} <= {"c", "d"}


def texts(*values: str) -> list[dict[str, Any]]:
    return [text(value, "web") for value in values]


def test_a_kept_row_gets_the_texts_of_its_dropped_twins(tmp_path: Path) -> None:
    own = [texts("dog"), [text("a dog", "human", score=0.7)], texts("dog", "cat"), None]
    rows = ROWS.append_column("texts", pa.array(own, TEXTS))
    got = decided(tmp_path, rows, merge_texts=True, rule="components")
    assert got["a"]["gained"] == [text("a dog", "human", score=pytest.approx(0.7)), *texts("cat")]
    assert got["a"]["donors"] == [["b"], ["c"]]
    assert all(got[i]["gained"] is None for i in "bcd")
    stage = DropDuplicates(
        decisions=File(path=str(tmp_path / "step/artifacts/decisions.parquet"), digest="m"), merge_texts=True
    )
    out = run_map(stage, rows).table
    assert out["id"].to_pylist() == ["a", "d"]
    assert [t["text"] for t in out["texts"][0].as_py()] == ["dog", "a dog", "cat"]


def test_every_donor_of_a_text_is_named_and_of_a_text_merged_before_the_first(tmp_path: Path) -> None:
    """b and c have the same text; c's other one it got from x in an earlier merge, and of one from y the words are gone."""
    own = [
        texts("dog"),
        texts("cat"),
        [*texts("cat", "cow"), text("", "web", kept=False, why="forgotten")],
        None,
    ]
    donors = pa.array([None, None, [None, ["x"], []], None], DONORS)
    rows = ROWS.append_column("texts", pa.array(own, TEXTS)).append_column("donors", donors)
    got = decided(tmp_path, rows, merge_texts=True, rule="components")
    assert [t["text"] for t in got["a"]["gained"]] == ["cat", "cow"]
    assert got["a"]["donors"] == [["b", "c"], ["x"]]


def test_shuffled_shards_make_the_same_decisions(tmp_path: Path) -> None:
    own = [texts(f"t{k}") for k in range(4)]
    rows = ROWS.append_column("texts", pa.array(own, TEXTS))
    want = decided(tmp_path / "0", rows, merge_texts=True, rule="components")
    for attempt in (1, 2):
        shuffled = rows.take(np.random.default_rng(attempt).permutation(4))
        assert decided(tmp_path / str(attempt), shuffled, merge_texts=True, rule="components") == want


def test_a_giant_group_is_worth_a_warning(tmp_path: Path) -> None:
    ids = [f"r{k:03d}" for k in range(300)]
    line = Edges(np.arange(200), np.arange(1, 201), np.full(200, 0.9), np.zeros(200, np.int8))
    edges, said = searched(tmp_path / "edges", line, ids, 300), []
    run_gather(
        Decide(edges=edges, rule="components"),
        [dataset(tmp_path, pa.table({"id": ids}))],
        tmp_path,
        said.append,
    )
    assert said[-1].startswith("warning: 201 rows were merged into row r000: chains of pairs may have joined")
