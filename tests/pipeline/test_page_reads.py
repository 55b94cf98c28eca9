"""Single values read by pages are those that pyarrow reads by row group; a flipped bit is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.rows.heavy import HeavyReader
from vlpipe.pipeline.inspect.rows.table import open_rows
from vlpipe.pipeline.parquet.page_reads import pages_of, values_of
from vlpipe.pipeline.shard import heavy, write_shard
from vlpipe.pipeline.storage.store import Store


def images(num: int, with_nulls: bool) -> list[bytes | None]:
    rng = np.random.default_rng(num)
    made: list[bytes | None] = [rng.bytes(int(size)) for size in rng.integers(0, 60_000, num)]
    if with_nulls:
        made[3] = made[num - 1] = None
        made[5] = b""
    return made


@pytest.mark.parametrize("is_image", [False, True])
@pytest.mark.parametrize("with_nulls", [False, True])
def test_every_value_of_a_shard(tmp_path: Path, with_nulls: bool, is_image: bool) -> None:
    store, data = Store(str(tmp_path)), images(150, with_nulls)
    vector = heavy("vector", pa.list_(pa.float32(), 2))
    schema = pa.schema([("id", pa.string()), heavy("image", pa.binary(), is_image=is_image), vector])
    rows = {"id": [f"r{n}" for n in range(150)], "image": data, "vector": [[n, 1.0] for n in range(150)]}
    shard = write_shard(
        store, "s-01234567/000000.parquet", [pa.table(rows, schema)], schema, row_group_rows=100
    )
    table = open_rows(store, "s-01234567", [Receipt(index=0, shard=shard, bytes=0, rows_in=150)])
    reader = HeavyReader()
    assert [reader.value(table, n, "image") for n in range(150)] == data
    assert reader.value(table, 140, "vector") == [140.0, 1.0]  # no bytes: by row group
    with pa.OSFile(str(tmp_path / shard.path)) as source:
        file = pq.ParquetFile(source)
        pages = pages_of(file, source, 0, "image")
        assert pages is not None
        assert len(pages.pages) > 1
        assert sum(page.num_rows for page in pages.pages) == 100
        assert pages_of(file, source, 0, "vector") is None
        assert pages_of(file, source, 0, "absent") is None


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd"])
def test_files_of_other_writers(tmp_path: Path, codec: str) -> None:
    table = pa.table({"t": [None if n % 7 == 0 else f"text {n}" * (n % 50) for n in range(5_000)]})
    pq.write_table(
        table, tmp_path / "a.parquet", compression=codec, use_dictionary=False, data_page_size=4096
    )
    with pa.OSFile(str(tmp_path / "a.parquet")) as source:
        pages = pages_of(pq.ParquetFile(source), source, 0, "t")
        assert pages is not None
        found = [value for k in range(len(pages.pages)) for value in values_of(source, pages, k)]
    assert [None if value is None else value.decode() for value in found] == table["t"].to_pylist()


def test_what_has_no_pages_here(tmp_path: Path) -> None:
    table = pa.table({"d": ["a", "b"] * 50, "s": [{"b": b"x"}] * 100, "l": [[b"x"]] * 100, "n": [1] * 100})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=["d"])
    pq.write_table(table, tmp_path / "b.parquet", use_dictionary=False, data_page_version="2.0")
    for name, columns in (("a", ["d", "s", "s.b", "l", "n"]), ("b", ["d"])):
        with pa.OSFile(str(tmp_path / f"{name}.parquet")) as source:
            file = pq.ParquetFile(source)
            assert [pages_of(file, source, 0, column) for column in columns] == [None] * len(columns)


def test_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    store, data = Store(str(tmp_path)), images(100, with_nulls=False)
    schema = pa.schema([("id", pa.string()), heavy("image", pa.binary())])
    rows = pa.table({"id": [f"r{n}" for n in range(100)], "image": data}, schema)
    shard = write_shard(store, "s-01234567/000000.parquet", [rows], schema)
    path = tmp_path / shard.path
    with pa.OSFile(str(path)) as source:
        pages = pages_of(pq.ParquetFile(source), source, 0, "image")
    assert pages is not None
    raw = bytearray(path.read_bytes())
    raw[pages.pages[1].at + 1000] ^= 4
    path.write_bytes(raw)
    table = open_rows(store, "s-01234567", [Receipt(index=0, shard=shard, bytes=0, rows_in=100)])
    reader = HeavyReader()
    assert reader.value(table, 0, "image") == data[0]
    with pytest.raises(
        VlpipeError, match=r"000000\.parquet cannot be read \(the checksum of page 1 is wrong\)"
    ):
        reader.value(table, pages.pages[1].first, "image")
    with pytest.raises(VlpipeError, match="no heavy column 'nothing'; it has image"):
        reader.value(table, 0, "nothing")
