from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import text
from vlpipe.stages.filter.keep_matched import KeepMatched
from vlpipe.stages.text_dedup.decisions import DropTexts
from vlpipe.stages.text_dedup.texts import TextDuplicates

TextRows = Callable[..., pa.Table]
LONG = "a man with a red umbrella walks over the wet street at night"


def run(
    folder: Path, table: pa.Table, *, shard_rows: int = 1000, **parameters: Any
) -> dict[tuple[str, int], Any]:
    stage = TextDuplicates(**parameters)
    got = run_gather(
        stage, [dataset(folder, table, shard_rows=shard_rows)], folder / "step", say=lambda _: None
    )
    lines = pq.read_table(got.artifacts / "texts.parquet").to_pylist()
    dropped = {r["why"]: 0 for r in lines if r["why"]}
    for r in lines:
        dropped |= {r["why"]: dropped[r["why"]] + 1} if r["why"] else {}
    assert {r["name"]: r["value"] for r in got.table.to_pylist() if r["value"]} == dropped
    return {(r["id"], r["place"]): r for r in lines}


def test_equal_but_for_case_and_punctuation(tmp_path: Path, text_rows: TextRows) -> None:
    got = run(tmp_path, text_rows({"b": ["A dog!"], "a": ["a  dog"], "c": ["a cat", "a dog."]}))
    assert got["b", 0] == {
        "id": "b",
        "place": 0,
        "keep": False,
        "why": "exact_duplicate_text",
        "witness": "a",
        "similarity": 1.0,
        "text": "A dog!",
    }
    assert [k for k, r in got.items() if r["keep"]] == [("a", 0), ("c", 0)]
    assert all(r["text"] is None for r in got.values() if r["keep"])


def test_near_texts_follow_the_one_that_stays(tmp_path: Path, text_rows: TextRows) -> None:
    near = LONG.replace("night", "nights")
    got = run(
        tmp_path,
        text_rows({"a": [LONG], "b": [near], "c": [near.upper()], "d": [LONG.replace("red", "blue")]}),
    )
    assert [got[i, 0]["why"] for i in "abcd"] == [None, "near_duplicate_text", "near_duplicate_text", None]
    assert got["c", 0]["witness"] == "a"
    assert (
        got["b", 0]["similarity"]
        == got["c", 0]["similarity"]
        == pytest.approx((len(LONG) - 4) / (len(LONG) - 3))
    )
    off = run(tmp_path / "off", text_rows({"a": [LONG], "b": [near], "c": [near.upper()]}), threshold=None)
    assert (off["b", 0]["keep"], off["c", 0]["witness"]) == (True, "b")


def test_only_the_named_sources_and_what_still_counts(tmp_path: Path, text_rows: TextRows) -> None:
    gone = {**text("a dog", "web"), "kept": False, "why": "junk"}
    table = text_rows(
        {"a": [gone], "b": [text("a dog", "human")], "c": ["a dog"], "d": ["a dog"], "e": [], "f": ["", ""]}
    )
    got = run(tmp_path, table)
    assert [k for k, r in got.items() if not r["keep"]] == [("d", 0)]
    assert got["d", 0]["witness"] == "c"
    assert len(run(tmp_path / "human", table, sources=("human",))) == len(got)


def test_the_order_of_rows_and_the_size_of_shards_change_no_decision(
    tmp_path: Path, alt_texts: list[str], text_rows: TextRows
) -> None:
    table = text_rows({f"r{n:04d}": [t] for n, t in enumerate(alt_texts[:1500])})
    want = run(tmp_path / "0", table)
    assert sum(not r["keep"] for r in want.values()) > 10
    order = list(range(1500))
    for attempt in (1, 2):
        random.Random(attempt).shuffle(order)
        assert run(tmp_path / str(attempt), table.take(order), shard_rows=311 * attempt) == want


@pytest.mark.slow
def test_every_dropped_text_has_a_witness_that_stays(
    tmp_path: Path, alt_texts: list[str], text_rows: TextRows
) -> None:
    got = run(tmp_path, text_rows({f"r{n}": [t] for n, t in enumerate(alt_texts)}))
    dropped = [r for r in got.values() if not r["keep"]]
    assert all(got[r["witness"], 0]["keep"] for r in dropped)
    assert {why: sum(r["why"] == why for r in dropped) for why in {r["why"] for r in dropped}} == {
        "exact_duplicate_text": 280,
        "near_duplicate_text": 102,
    }


def test_applied_and_rows_without_a_text_dropped(tmp_path: Path, text_rows: TextRows) -> None:
    table = text_rows({"a": ["a dog"], "b": ["A dog", "a cat"], "c": ["a dog."]})
    run(tmp_path, table)
    path = str(tmp_path / "step/artifacts/texts.parquet")
    marked = run_map(DropTexts(decisions=File(path=path, digest=path)), table).table
    assert [[t["kept"] for t in ts] for ts in marked["texts"].to_pylist()] == [[None], [False, None], [False]]
    out = run_map(KeepMatched(), marked)
    assert out.table["id"].to_pylist() == ["a", "b"]
    assert [(r.id, r.detail) for r in out.rejects] == [("c", "web: exact_duplicate_text")]


def test_the_larger_picture_keeps_its_text(tmp_path: Path, text_rows: TextRows) -> None:
    table = text_rows({"a": ["a dog"], "b": ["A dog"], "c": ["a dog!"]})
    for name, sides in (("width", [10, 20, None]), ("height", [10, 20, 90])):
        table = table.append_column(name, pa.array(sides, pa.int32()))
    got = run(tmp_path, table)
    assert [(r["id"], r["witness"]) for r in got.values() if not r["keep"]] == [("a", "b"), ("c", "b")]


def test_a_row_that_comes_twice(tmp_path: Path, text_rows: TextRows) -> None:
    table = text_rows({"a": ["a dog"]})
    with pytest.raises(
        VlpipeError, match=r"1 id\(s\) occur more than once in the rows of input: give each row to dedup once"
    ):
        run(tmp_path, pa.concat_tables([table, table]))


def test_no_rows_and_no_texts(tmp_path: Path, text_rows: TextRows) -> None:
    assert run(tmp_path, text_rows({})) == {}
    with pytest.raises(
        SchemaError, match=r"dedup\.texts reads column 'texts', which its input does not have"
    ):
        TextDuplicates().schema(pa.schema([("id", pa.string())]))
