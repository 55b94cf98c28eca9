from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import RowFault, SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import text
from vlpipe.stages.text_dedup.decisions import TEXT_DECISIONS, DropTexts, write_text_decisions

TextRows = Callable[..., pa.Table]
TABLE = {"a": ["one", "two"], "b": ["three"], "c": []}


@pytest.fixture
def stage(tmp_path: Path, text_rows: TextRows) -> DropTexts:
    """Decided: the second text of `a` goes."""
    path = str(tmp_path / "texts.parquet")
    assert write_text_decisions(path, [text_rows(TABLE)], {("a", 1): ("in_eval:coco", "x.json[3]", 0.5)}) == 3
    assert pq.read_schema(path).equals(TEXT_DECISIONS)
    return DropTexts(decisions=File(path=path, digest=path))


def test_marks_and_leaves_the_rest(stage: DropTexts, text_rows: TextRows) -> None:
    table = text_rows({**TABLE, "b": ["three", text("added later", "synth")]})
    out = run_map(stage, table)
    assert out.table.drop_columns("texts").equals(table.drop_columns("texts"))
    want = table["texts"].to_pylist()
    want[0][1] |= {"kept": False, "why": "in_eval:coco"}
    assert out.table["texts"].to_pylist() == want
    assert out.log == [{"id": "a", "dropped": "two", "witness": "x.json[3]", "similarity": 0.5}]


def test_what_was_dropped_before_keeps_its_reason(stage: DropTexts, text_rows: TextRows) -> None:
    table = text_rows({"a": ["one", {**text("two", "web"), "kept": False, "why": "junk"}]})
    out = run_map(stage, table)
    assert out.table.equals(table)
    assert out.log == []


def test_rows_without_texts_were_never_decided_about(stage: DropTexts, text_rows: TextRows) -> None:
    assert run_map(stage, text_rows({"new": []})).table.num_rows == 1


def test_other_rows_or_other_texts_are_faults(stage: DropTexts, text_rows: TextRows) -> None:
    with pytest.raises(RowFault, match="not_in_decisions: the dedup step did not read this row"):
        run_map(stage, text_rows({"new": ["two"]}))
    with pytest.raises(RowFault, match="text_changed: the decision is for 'two', but the row now has 'TWO'"):
        run_map(stage, text_rows({"a": ["one", "TWO"]}))


def test_the_wrong_file_is_named(tmp_path: Path, text_rows: TextRows) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "decisions.parquet")
    with pytest.raises(
        SchemaError, match=r"text_dedup\.decisions \(.*decisions\.parquet\) reads column 'place'"
    ):
        run_map(DropTexts(decisions=File(path=str(tmp_path / "decisions.parquet"))), text_rows(TABLE))
    with pytest.raises(VlpipeError, match=r"wanted \{from: STEP, path: texts\.parquet\}"):
        run_map(DropTexts(decisions=File(path=str(tmp_path / "none"))), text_rows(TABLE))
