from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Heavy, Shard, write_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, TEXTS, text
from vlpipe.stages.loading.rows import Row, RowCache, count_usable, int64_id, read_unit, scan, usable

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS])


def row(id_: str, *texts: dict[str, Any], image: bytes = b"", sha256: str | None = None) -> dict[str, Any]:
    return {"id": id_, "texts": list(texts), "image": image or id_.encode() * 10, "sha256": sha256}


def test_texts_that_were_dropped_or_are_blank_are_not_trained_on() -> None:
    column = pa.chunked_array(
        [
            [[text("a", "web"), text("b", "synth", kept=False), text("c", "synth", kept=True)], []],
            [
                None,
                [text("d", "web", kept=False)],
                [text(" \n", "web"), text("", "web")],
                [text("e", "human")],
            ],
        ],
        TEXTS,
    )
    assert usable(column) == [["a", "c"], [], [], [], [], ["e"]]
    assert count_usable(column, "pairs") == 3
    assert count_usable(column, "images") == 2
    assert usable(column.slice(5)) == [["e"]]
    assert count_usable(column.slice(1, 3), "pairs") == 0


def light_and_heavy(folder: Path) -> Dataset:
    """20 rows with images in row groups of 8; a light shard of every third row, in row groups of 3."""
    store = Store(str(folder))
    rows = [row(f"r{i}", *([] if i == 6 else [text(f"text {i}", "web")])) for i in range(20)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    heavy = write_shard(store, "images/000000.parquet", [table], SCHEMA, 8)
    light_schema = pa.schema([f for f in SCHEMA if f.name != "image"])
    light = write_shard(
        store, "light/000000.parquet", [table.take(list(range(0, 20, 3))).drop(["image"])], light_schema, 3
    )
    shard = Shard(path=light.path, num_rows=7, digest=light.digest, heavy=(Heavy("image", heavy.path, ""),))
    return Dataset(store, "light", SCHEMA, (shard,))


def test_images_are_joined_by_id(tmp_path: Path) -> None:
    data = light_and_heavy(tmp_path)
    scanned = scan(data, "pairs", ["image"])
    units, counts = scanned.units, scanned.counts
    assert counts == [2, 3, 1]
    rows, sizes = zip(*scanned.sizes, strict=True)
    assert rows == (2, 3, 1)
    stored = sum(len(f"r{i}") * 10 for i in range(20)) / 20  # bytes of a row's image, in the other shard
    assert [stored * n <= size <= (stored + 40) * n for n, size in zip(rows, sizes, strict=True)] == [
        True
    ] * 3
    found = [(r.id, r.texts, r.columns["image"]) for unit in units for r in read_unit(unit)]
    assert found == [(f"r{i}", [f"text {i}"], f"r{i}".encode() * 10) for i in range(0, 20, 3) if i != 6]


def test_a_row_without_its_image_is_an_error(tmp_path: Path) -> None:
    data = light_and_heavy(tmp_path)
    store = data.store
    other = write_shard(store, "other.parquet", [pa.Table.from_pylist([row("x")], SCHEMA)], SCHEMA)
    shard = Shard(path=data.shards[0].path, num_rows=7, digest="", heavy=(Heavy("image", other.path, ""),))
    units = scan(Dataset(store, "light", SCHEMA, (shard,)), "pairs").units
    with pytest.raises(VlpipeError, match=r"2 row\(s\) \(first: r0\) have no image in other.parquet"):
        read_unit(units[0])


def test_pairs_are_counted_through_the_row_group(tmp_path: Path) -> None:
    rows = [
        row("a", text("1", "web"), text("2", "web")),
        row("b"),
        row("c", *(text(t, "web") for t in "345")),
    ]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA))
    scanned = scan(data, "pairs")
    (unit,), (count,) = scanned.units, scanned.counts
    found = read_unit(unit)
    pairs = [found.pair(i) for i in range(count)]
    assert [(r.id, t) for r, t in pairs] == [("a", "1"), ("a", "2"), ("c", "3"), ("c", "4"), ("c", "5")]


def test_bytes_are_those_of_the_columns_that_are_read(tmp_path: Path) -> None:
    rows = [row(f"r{i}", text("t", "web"), text("u", "web"), image=bytes(1000 * i)) for i in range(8)]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA), shard_rows=2)
    found = scan(data, "pairs", ["image"])
    assert [n for n, _ in found.sizes] == [2] * 4  # rows, each with two texts
    assert found.counts == [4] * 4
    for k, (_, size) in enumerate(found.sizes):
        assert abs(size - 1000 * (4 * k + 1)) < 200
    assert [size for _, size in scan(data, "pairs").sizes] == [0] * 4


def test_lists_of_structs_have_a_size_in_the_cache(tmp_path: Path) -> None:
    regions = pa.array(
        [[{"feat": [0.5] * 100}] * 3] * 4, pa.list_(pa.struct([("feat", pa.list_(pa.float32()))]))
    )
    table = pa.table({"id": ["a", "b", "c", "d"], "regions": regions})
    data = dataset(tmp_path, table)
    (unit,) = scan(data, "rows", ["regions"]).units
    held = read_unit(unit, ["regions"], with_texts=False)
    assert 4 * 1200 <= held.num_bytes < 4 * 1400


def test_exact_twins_share_their_image_id(tmp_path: Path) -> None:
    rows = [
        row(i, text("t", "web"), sha256=s) for i, s in (("a", "s1"), ("b", "s1"), ("c", "s2"), ("d", None))
    ]
    (unit,) = scan(dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA)), "pairs").units
    ids = [r.image_id for r in read_unit(unit)]
    assert ids[0] == ids[1] == int64_id("s1")
    assert len(set(ids)) == 3
    assert all(0 <= i < 2**63 for i in ids)


def test_the_cache_keeps_what_is_needed_and_what_fits(tmp_path: Path) -> None:
    rows = [row(f"r{i}", text("t", "web"), image=bytes(100)) for i in range(5)]
    units = scan(dataset(tmp_path, pa.Table.from_pylist(rows, SCHEMA), shard_rows=1), "pairs").units
    cache = RowCache(units, max_bytes=200, num_threads=1)
    cache.want([0, 1, 2])
    assert [cache[k][0].id for k in range(3)] == ["r0", "r1", "r2"]
    cache.want([3], keep=[0])  # 1 and 2 are spare and fit
    assert sorted(cache._futures) == [0, 1, 2, 3]
    cache.want([4], keep=[3])  # 0, 1, 2 are spare: 300 bytes; the longest unused one goes
    assert sorted(cache._futures) == [0, 2, 3, 4]
    cache.close()


def test_a_row_is_pickled_with_its_nested_values_alone() -> None:
    kind = pa.list_(pa.struct([("feat", pa.list_(pa.float32())), ("obj", pa.int64())]))
    column = pa.array([[{"feat": [k, k + 0.5], "obj": k}] * 3 for k in range(1000)] + [None, []], kind)
    for index in (7, 1000, 1001):
        value = {"regions": column[index], "width": 8, "image": b"abc", "again": None}
        found = pickle.loads(pickle.dumps(Row("a", 5, ["one"], value)))
        assert found == Row("a", 5, ["one"], value)
        assert len(pickle.dumps(found)) < 2000


def test_texts_occur_as_often_as_a_column_says(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("copies", pa.list_(pa.int32())))
    kept = [text(name, "web") for name in "abc"]
    rows = [
        {**row("x", *kept), "copies": [2, 0, None]},
        {**row("y", *kept[:2]), "copies": [0, 0]},
        {**row("z", text("d", "web", kept=False), text("e", "web")), "copies": [5, 3]},
    ]
    table = pa.Table.from_pylist(rows, schema)
    found = scan(dataset(tmp_path, table), "pairs", copies="copies")
    assert found.counts == [6]
    assert found.sizes[0][0] == 2
    (unit,) = found.units
    held = read_unit(unit)
    assert [(r.id, r.texts) for r in held] == [("x", ["a", "a", "c"]), ("z", ["e", "e", "e"])]
    assert [held.pair(at)[1] for at in range(6)] == ["a", "a", "c", "e", "e", "e"]
    assert scan(dataset(tmp_path / "images", table), "images", copies="copies").counts == [2]
    plain = dataset(tmp_path / "plain", table.drop(["copies"]))
    assert scan(plain, "pairs", copies="copies").counts == [6]
    assert [r.texts for r in read_unit(scan(plain, "pairs").units[0])] == [["a", "b", "c"], ["a", "b"], ["e"]]
    short = pa.Table.from_pylist([{**rows[0], "copies": [1]}], schema)
    with pytest.raises(VlpipeError, match="not one value per text"):
        scan(dataset(tmp_path / "short", short), "pairs", copies="copies")
