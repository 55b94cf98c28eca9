from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import DONORS, TEXTS, text
from vlpipe.stages.dedup.apply import DropDuplicates
from vlpipe.stages.dedup.decisions import DECISIONS


def decisions(path: Path, **more: dict[str, object]) -> File:
    rows = [
        {"id": "a", "keep": True, "why": None, "witness": None, "similarity": None, "group": "a"},
        {
            "id": "b",
            "keep": False,
            "why": "near_duplicate",
            "witness": "a",
            "similarity": 0.9712,
            "group": "a",
        },
        {
            "id": "c",
            "keep": True,
            "why": "not_compared_truncated",
            "witness": None,
            "similarity": None,
            "group": "c",
        },
    ]
    extra = {"gained": None, "donors": None, "image_rows": 1, "image_hosts": 1, "image_texts": None}
    pq.write_table(
        pa.Table.from_pylist([extra | row | more.get(row["id"], {}) for row in rows], DECISIONS), path
    )
    return File(path=str(path), digest=str(path))


def test_dropped_rows_are_filtered_with_their_witness(tmp_path: Path) -> None:
    stage = DropDuplicates(decisions=decisions(tmp_path / "decisions.parquet"))
    out = run_map(stage, pa.table({"id": ["c", "b", "a"], "n": [1, 2, 3]}))
    counts = {"image_rows": [1, 1], "image_hosts": [1, 1], "image_texts": [None, None]}
    assert out.table.to_pydict() == {"id": ["c", "a"], "n": [1, 3], **counts}
    assert out.rejects == [Reject("b", "filtered", "near_duplicate", "duplicate of a, similarity 0.971")]


def test_a_row_that_dedup_has_not_seen_is_a_fault(tmp_path: Path) -> None:
    stage = DropDuplicates(decisions=decisions(tmp_path / "decisions.parquet"))
    out = run_map(stage, pa.table({"id": ["a", "new"]}))
    assert out.table["id"].to_pylist() == ["a"]
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("new", "fault", "not_in_decisions")]


def test_the_wrong_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "edges.parquet")
    with pytest.raises(SchemaError, match=r"dedup.apply \(.*edges.parquet\) reads column 'keep'"):
        run_map(DropDuplicates(decisions=File(path=str(tmp_path / "edges.parquet"))), pa.table({"id": ["a"]}))
    (tmp_path / "model.bin").write_bytes(b"no parquet")
    with pytest.raises(VlpipeError, match=r"wanted \{from: STEP, path: decisions.parquet\}"):
        run_map(DropDuplicates(decisions=File(path=str(tmp_path / "model.bin"))), pa.table({"id": ["a"]}))


def test_texts_of_dropped_twins_come_after_the_own_ones(tmp_path: Path) -> None:
    gained = {"gained": [text("from b", "human")], "donors": [["b", "x"]]}
    given = decisions(tmp_path / "decisions.parquet", a=gained)
    stage = DropDuplicates(decisions=given, merge_texts=True)
    texts = pa.array([[text("of c", "web")], [text("from b", "human")], [text("of a", "web")]], TEXTS)
    out = run_map(stage, pa.table({"id": ["c", "b", "a"], "texts": texts}))
    assert out.table["texts"].to_pylist() == [
        [text("of c", "web")],
        [text("of a", "web"), text("from b", "human")],
    ]
    assert out.table["donors"].to_pylist() == [None, [None, ["b", "x"]]]
    with pytest.raises(SchemaError, match=r"dedup.apply \(merge_texts\) reads column 'texts'"):
        run_map(stage, pa.table({"id": ["a"]}))
    with pytest.raises(
        VlpipeError,
        match="give 1 rows the texts of their duplicates, but `merge_texts` is false here; set it to true",
    ):
        run_map(DropDuplicates(decisions=given), pa.table({"id": ["a"], "texts": texts[:1]}))


def test_donors_of_an_earlier_merge_stay_at_their_texts(tmp_path: Path) -> None:
    """One was merged in before, then one was added that is the row's own; the column ends where the donors do."""
    gained = {"gained": [text("from b", "human")], "donors": [["b"]]}
    stage = DropDuplicates(decisions=decisions(tmp_path / "decisions.parquet", a=gained), merge_texts=True)
    texts = pa.array([[text("own", "web"), text("from e", "web"), text("later", "synth")]], TEXTS)
    rows = pa.table({"id": ["a"], "texts": texts, "donors": pa.array([[None, ["e"]]], DONORS)})
    out = run_map(stage, rows).table
    assert [t["text"] for t in out["texts"][0].as_py()] == ["own", "from e", "later", "from b"]
    assert out["donors"].to_pylist() == [[None, ["e"], None, ["b"]]]
    assert stage.schema(rows.schema).names == [*rows.schema.names, "image_rows", "image_hosts", "image_texts"]


def test_a_row_that_went_by_a_chain_says_so(tmp_path: Path) -> None:
    chained = decisions(tmp_path / "decisions.parquet", b={"similarity": None})
    out = run_map(DropDuplicates(decisions=chained), pa.table({"id": ["b"]}))
    assert (
        out.rejects[0].detail == "duplicate of a through a chain of similar rows; the two were not compared"
    )


def test_a_dropped_row_says_who_took_its_texts(tmp_path: Path) -> None:
    """Row b gave two texts, c (dropped here) none; x was merged into b by an earlier dedup and is no row of this one."""
    gained = {"gained": [text(t, "web") for t in "uvw"], "donors": [["b"], ["b"], ["x"]]}
    dropped = {"keep": False, "why": "exact_duplicate", "witness": "a", "similarity": 1.0, "group": "a"}
    given = decisions(tmp_path / "decisions.parquet", a=gained, c=dropped)
    rows = pa.table({"id": ["a", "b", "c"], "texts": pa.array([[text("own", "web")]] * 3, TEXTS)})
    out = run_map(DropDuplicates(decisions=given, merge_texts=True), rows)
    assert {r.id: r.detail for r in out.rejects} == {
        "b": "duplicate of a, similarity 0.971; 2 of its texts were added to row a",
        "c": "duplicate of a, similarity 1.000",
    }


def test_kept_rows_carry_their_counts_and_decisions_without_counts_are_read(tmp_path: Path) -> None:
    counts = {"image_rows": 200, "image_hosts": 3, "image_texts": 190}
    given = decisions(tmp_path / "decisions.parquet", a=counts)
    rows = pa.table({"id": ["c", "b", "a"]})
    out = run_map(DropDuplicates(decisions=given), rows).table
    assert out.to_pydict() == {
        "id": ["c", "a"],
        "image_rows": [1, 200],
        "image_hosts": [1, 3],
        "image_texts": [None, 190],
    }
    old = pq.read_table(given.path).drop_columns(list(counts))
    pq.write_table(old, tmp_path / "old.parquet")
    stage = DropDuplicates(decisions=File(path=str(tmp_path / "old.parquet"), digest="old"))
    assert run_map(stage, rows).table["image_rows"].to_pylist() == [None, None]
