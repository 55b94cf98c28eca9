"""Rows are selected by lists of ids, as text, Parquet and DataComp's uids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.filter.in_list import InList, is_listed, read_digests

UIDS = [f"{n * 7919:032x}" for n in range(200)]


def rows(values: list[str | None]) -> pa.Table:
    return pa.table({"id": [f"r{n}" for n in range(len(values))], "uid": pa.array(values, pa.string())})


def listed(folder: Path, kind: str, ids: list[str]) -> Path:
    path = folder / f"subset{kind}"
    if kind == ".npy":
        pairs = [(int(one[:16], 16), int(one[16:], 16)) for one in ids]
        np.save(path, np.array(pairs, [("f0", "u8"), ("f1", "u8")]))
    elif kind == ".parquet":
        pq.write_table(pa.table({"uid": ids}), path)
    else:
        path.write_text("\ufeff" + "\n".join(ids) + "\n\n")  # a byte-order mark is not part of the first id
    return path


@pytest.mark.parametrize("kind", [".txt", ".npy", ".parquet"])
def test_listed_rows_stay(kind: str, tmp_path: Path) -> None:
    path = listed(tmp_path, kind, UIDS[::3])
    table = rows([*UIDS, None, "other"])
    kept = run_map(InList(ids=File(path=str(path)), column="uid"), table)
    assert kept.table["uid"].to_pylist() == UIDS[::3]
    assert {(one.kind, one.why) for one in kept.rejects} == {("filtered", "not_in_list")}
    others = run_map(InList(ids=File(path=str(path)), column="uid", keep="others"), table)
    assert others.table["uid"].to_pylist() == [one for one in UIDS if one not in UIDS[::3]] + [None, "other"]


def test_membership_is_that_of_a_set(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    some = [str(n) for n in draw.integers(0, 3000, 1000)]
    ids = [str(n) for n in range(3000)]
    digests = read_digests(str(listed(tmp_path, ".txt", some)), "id")
    assert len(digests) == len(set(some))
    assert is_listed(ids, digests).tolist() == [one in set(some) for one in ids]
    assert is_listed(ids[:3], digests[:0]).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.npy", np.arange(3), r"a.npy has 1 dimension\(s\) of int64; wanted one of two u8"),
        ("b.npy", np.array([{"a": 1}], object), "b.npy is not an array of numpy without objects"),
        ("c.npy", b"nothing", "c.npy is not an array of numpy without objects"),
        ("d.parquet", pa.table({"uids": ["a"]}), r"d.parquet has no column 'uid'; did you mean .uids.\?"),
        ("e.txt", b"\xff\xfe", "e.txt is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_list_is_an_error(name: str, content: Any, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content)
    with pytest.raises(VlpipeError, match=wanted):
        run_map(InList(ids=File(path=str(path)), column="uid"), rows(UIDS[:2]))


def test_mistakes_are_found_by_the_plan(tmp_path: Path) -> None:
    assert InList(ids=File(path="x.csv")).preflight() == [
        "ids: wanted a file that ends in .txt, .npy, .parquet, got x.csv"
    ]
    with pytest.raises(SchemaError, match="uid"):
        InList(ids=File(path="x.txt"), column="uid").schema(pa.schema([("id", pa.string())]))
