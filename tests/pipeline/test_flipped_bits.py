"""A flipped bit in a shard is an error that names the file, and never another value."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import run

from vlpipe.pipeline.change.export import export
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.row_digest import checked
from vlpipe.pipeline.shard import Shard, heavy, read_batches, write_shard
from vlpipe.pipeline.storage.store import Store

TEXTS = pa.list_(pa.struct([("text", pa.string()), ("kept", pa.bool_())]))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n", pa.int64()),
        ("x", pa.float32()),
        ("texts", TEXTS),
        heavy("image", pa.binary()),
    ]
)


def some(num: int) -> pa.Table:
    return pa.table(
        {
            "id": [f"id{k}" for k in range(num)],
            "n": range(num),
            "x": [k / 7 for k in range(num)],
            "texts": [[{"text": f"text {k}", "kept": None}] * (k % 3) for k in range(num)],
            "image": [hashlib.sha256(bytes([k])).digest() for k in range(num)],
        },
        SCHEMA,
    )


def read(store: Store, shard: Shard, columns: list[str] | None) -> pa.Table | str:
    """All rows, or what was said."""
    want_heavy = ["image"] if columns is None else []
    try:
        return pa.concat_tables(read_batches(store, shard, columns, want_heavy)).combine_chunks()
    except VlpipeError as error:
        return str(error)


@pytest.mark.slow
def test_no_flipped_bit_gives_other_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shard = write_shard(store, "a.parquet", [some(24)], SCHEMA, row_group_rows=10)
    path = tmp_path / "a.parquet"
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    bits = random.Random(7).sample(range(footer * 8), 300)
    bits += random.Random(8).sample(range(footer * 8, len(whole) * 8), 700)
    ways = (None, ["id"], ["id", "n"])
    right = [read(store, shard, columns) for columns in ways]
    assert [len(rows) for rows in right] == [24] * 3
    num_seen = 0
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        for columns, rows in zip(ways, right, strict=True):
            got = read(store, shard, columns)
            if isinstance(got, str):
                num_seen += 1
                assert str(path) in got, bit
                assert "`vlpipe verify` lists what is damaged" in got
            else:
                assert got.equals(rows), (bit, columns)
    assert num_seen > 1_000


@pytest.mark.parametrize("step", ["numbers", "scale"])
def test_a_run_stops_at_it(tmp_path: Path, step: str) -> None:
    text = """
steps:
  numbers: {use: "toys:Numbers", num_rows: 40, shard_rows: 20, payload_bytes: 500}
  scale: {use: "toys:Scale", from: numbers}
"""
    run(tmp_path, text)
    (path,) = (tmp_path / "root").glob(f"{step}-*/000001.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(VlpipeError, match=rf"{path.parent.name}/000001.parquet cannot be read"):
        run(tmp_path, text + '  size: {use: "toys:Payload", from: scale}\n')


def test_a_shard_with_rows_less_is_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shard = write_shard(store, "a.parquet", [some(24)], SCHEMA)
    write_shard(store, "a.parquet", [some(23)], SCHEMA)
    assert "its footer has changed" in str(read(store, shard, ["id"]))


def test_a_rows_own_sha256_is_compared_where_its_image_leaves(tmp_path: Path) -> None:
    """Bytes that changed before they were written, so that no checksum of the file knows."""
    good = [hashlib.sha256(b"x" * k).hexdigest() for k in range(3)]
    table = pa.table({"id": ["a", "b", "c"], "image": [b"x" * k for k in range(3)], "sha256": good})
    assert checked(table, "there") is table
    bad = table.set_column(1, "image", pa.array([b"", b"x", b"xy"]))
    with pytest.raises(VlpipeError, match="there, row c: its image does not match the row's sha256"):
        checked(bad, "there")
    none = table.set_column(2, "sha256", pa.array([None, *good[1:]]))
    assert checked(none, "there") is none


def test_export_compares_it(tmp_path: Path) -> None:
    text = 'steps:\n  a: {use: "odd_toys:Wrong", num_rows: 3}\n'
    one = run(tmp_path, text)["a"]
    for columns in (None, ["image"]):
        with pytest.raises(VlpipeError, match="row id1: its image does not match"):
            export(one, Store(str(tmp_path / "root")), Store(str(tmp_path / f"out{columns}")), columns)
    export(one, Store(str(tmp_path / "root")), Store(str(tmp_path / "light")), ["id", "n"])
