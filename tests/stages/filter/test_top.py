from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.filter.top import InTop, TopCut


def in_top(folder: Path, table: pa.Table, fraction: float, column: str = "score") -> list[str]:
    got = run_gather(
        TopCut(column=column, fraction=fraction), [dataset(folder / "in", table, shard_rows=37)], folder
    )
    stage = InTop(column=column, cut=File(path=str(folder / "artifacts/cut.json")))
    out = run_map(stage, table).table
    kept = out.filter(out["in_top"])["id"].to_pylist()
    assert got.table["num_kept"].to_pylist() == [len(kept)]
    return sorted(kept)


@pytest.mark.parametrize("fraction", [0.001, 0.29, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64(), pa.int32()])
def test_the_best_by_score_then_a_hash_of_the_id(tmp_path: Path, fraction: float, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 12, 1000)  # ties everywhere
    ids = [f"r{i:04d}" for i in rng.permutation(1000)]
    table = pa.table({"id": ids, "score": pa.array(scores).cast(dtype)})
    marks = [hashlib.sha256(f"filter.top {id_}".encode()).hexdigest() for id_ in ids]
    best = sorted(zip((-scores).tolist(), marks, ids, strict=True))
    num = {0.001: 1, 0.29: 290, 0.3: 300, 0.5: 500, 1.0: 1000}[
        fraction
    ]  # 1000 * 0.29 is 290, not int(289.99...)
    assert in_top(tmp_path, table, fraction) == sorted(id_ for *_, id_ in best[:num])
    backwards = table.take(list(range(999, -1, -1)))
    assert in_top(tmp_path / "other", backwards, fraction) == sorted(id_ for *_, id_ in best[:num])


def test_a_cut_names_no_row(tmp_path: Path) -> None:
    ids = [hashlib.sha256(bytes([n])).hexdigest() for n in range(40)]
    in_top(tmp_path, pa.table({"id": ids, "score": [1.0] * 40}), 0.5)
    cut = (tmp_path / "artifacts/cut.json").read_text()
    assert not [id_ for id_ in ids if id_[:16] in cut]


def test_rows_without_a_score_count_but_are_never_in(tmp_path: Path) -> None:
    table = pa.table({"id": list("abcdef"), "score": [0.5, None, float("nan"), 0.1, None, None]})
    assert in_top(tmp_path, table, 0.2) == ["a"]
    assert in_top(tmp_path / "all", table, 1.0) == ["a", "d"]
    assert in_top(tmp_path / "none", table, 0.1) == []
    assert in_top(tmp_path / "empty", table.slice(0, 0), 0.5) == []


def test_of_several_texts_the_best_that_is_left_counts(tmp_path: Path) -> None:
    dropped = text("x", "web", kept=False, why="junk")
    texts = [[text("x", "web"), text("y", "web")], [dropped, text("y", "web")], [], [dropped]]
    table = pa.table(
        {
            "id": list("abcd"),
            "texts": pa.array(texts, TEXTS),
            "clip_score": pa.array([[0.1, 0.4], [0.9, 0.3], [], [0.9]], pa.list_(pa.float32())),
        }
    )
    assert in_top(tmp_path, table, 0.25, "clip_score") == ["a"]
    assert in_top(tmp_path / "more", table, 0.5, "clip_score") == ["a", "b"]


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError,
        match=r"filter.top reads column 'scor', which its input does not have; did you mean 'score'",
    ):
        TopCut(column="scor", fraction=0.3).schema(pa.schema([("id", pa.string()), ("score", pa.float32())]))
    with pytest.raises(
        SchemaError, match=r"filter.top needs numbers in column 'id', but the column is string"
    ):
        TopCut(column="id", fraction=0.3).schema(pa.schema([("id", pa.string())]))
    marks = InTop(column="score", cut=File(path=str(tmp_path / "cut.json")))
    with pytest.raises(SchemaError, match=r"filter.top reads column 'id', which its input does not have"):
        marks.schema(pa.schema([("score", pa.float32())]))
    with pytest.raises(SchemaError, match=r"filter.top reads column 'score', which its input does not have"):
        marks.schema(pa.schema([("id", pa.string())]))
    (tmp_path / "cut.json").write_text('{"column": "other"}')
    with pytest.raises(VlpipeError, match="is for column 'other', but this step has `column: score`"):
        run_map(
            marks,
            pa.table({"id": ["a"], "score": [1.0]}),
        )
