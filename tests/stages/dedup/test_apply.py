from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.dedup.apply import DropDuplicates
from vlpipe.stages.dedup.decisions import DECISIONS


def decisions(path: Path) -> File:
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
    pq.write_table(pa.Table.from_pylist(rows, DECISIONS), path)
    return File(path=str(path), digest=str(path))


def test_dropped_rows_are_filtered_with_their_witness(tmp_path: Path) -> None:
    stage = DropDuplicates(decisions=decisions(tmp_path / "decisions.parquet"))
    out = run_map(stage, pa.table({"id": ["c", "b", "a"], "n": [1, 2, 3]}))
    assert out.table.to_pydict() == {"id": ["c", "a"], "n": [1, 3]}
    assert out.rejects == [Reject("b", "filtered", "near_duplicate", "twin of a, similarity 0.971")]


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
