"""Image files in shards: other tools see pictures, stages see bytes, whether a shard stores structs or bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from look_at import picture

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.inspect.rows.sql import query
from vlpipe.pipeline.inspect.rows.table import open_rows
from vlpipe.pipeline.parquet.image_files import STORED
from vlpipe.pipeline.shard import Shard, heavy, open_shard, read_batches, write_shard
from vlpipe.pipeline.steps.columns import common_metadata
from vlpipe.pipeline.storage.store import Store

BYTES = pa.schema([("id", pa.string()), heavy("image", pa.binary())])
IMAGES = pa.schema([("id", pa.string()), heavy("image", pa.binary(), is_image=True)])


def rows(first: int, num: int) -> pa.Table:
    data = [None if n % 5 == 3 else picture(n) for n in range(first, first + num)]
    return pa.table({"id": [f"r{n}" for n in range(first, first + num)], "image": data}, BYTES)


def written(tmp_path: Path, *schemas: pa.Schema) -> list[Shard]:
    """A shard of 10 rows per schema."""
    store = Store(str(tmp_path))
    return [
        write_shard(store, f"s-01234567/{n:06d}.parquet", [rows(10 * n, 10)], schema, row_group_rows=4)
        for n, schema in enumerate(schemas)
    ]


def test_datasets_shows_the_pictures_of_a_shard_without_a_cast(tmp_path: Path) -> None:
    import datasets

    files = [f"{tmp_path}/{shard.path}" for shard in written(tmp_path, IMAGES, IMAGES)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert isinstance(loaded.features["image"], datasets.Image)
    shown = loaded["image"][:]
    assert [None if one is None else one.size for one in shown] == [
        None if n % 5 == 3 else (24, 16) for n in range(20)
    ]
    stored = loaded.cast_column("image", datasets.Image(decode=False))["image"][:]
    wanted = pa.concat_tables([rows(0, 10), rows(10, 10)])["image"].to_pylist()
    assert [one and one["bytes"] for one in stored] == wanted


@pytest.mark.parametrize("schema", [BYTES, IMAGES])
def test_stages_see_bytes(tmp_path: Path, schema: pa.Schema) -> None:
    (shard,) = written(tmp_path, schema)
    store = Store(str(tmp_path))
    assert pa.concat_tables(read_batches(store, shard, want_heavy=["image"])).equals(rows(0, 10))
    with open_shard(store, shard) as file:
        assert file.schema_arrow.equals(schema, check_metadata=True)
        assert file.read().equals(rows(0, 10))
        assert file.read_row_groups([0, 1]).equals(rows(0, 8))
        assert pa.Table.from_batches(file.iter_batches(3)).equals(rows(0, 10))
        assert file.read_row_group(2, columns=["image"])["image"].to_pylist() == [None, picture(9)]
    stored = pq.read_schema(f"{tmp_path}/{shard.path}")
    assert stored.field("image").type == (STORED if schema is IMAGES else pa.binary())


def test_a_shard_is_cut_as_one_of_bytes_and_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    one, other = written(tmp_path, IMAGES, BYTES)
    sizes = [
        [about.row_group(g).num_rows for g in range(about.num_row_groups)]
        for about in (pq.read_metadata(f"{tmp_path}/{shard.path}") for shard in (one, other))
    ]
    assert sizes == [[4, 4, 2]] * 2
    pieces = [rows(0, 10).slice(n, 1) for n in range(10)]
    again = write_shard(Store(str(tmp_path)), "again.parquet", pieces, IMAGES, row_group_rows=4)
    assert again.digest == one.digest


def test_sql_reads_both_kinds_of_shards_in_one_step(tmp_path: Path) -> None:
    shards = written(tmp_path, BYTES, IMAGES)
    receipts = [Receipt(index=n, shard=shard, bytes=0, rows_in=10) for n, shard in enumerate(shards)]
    table = open_rows(Store(str(tmp_path)), "s-01234567", receipts)
    found, more = query(table, "SELECT id, octet_length(image) n FROM rows", 100)
    assert not more
    assert found["n"].to_pylist() == [
        n and len(n) for n in [*rows(0, 10)["image"].to_pylist(), *rows(10, 10)["image"].to_pylist()]
    ]


def test_inputs_of_which_one_does_not_name_its_images_stay_heavy() -> None:
    """A map step over both: what all inputs say of a column is kept, here that it is heavy."""
    named, plain = IMAGES.field("image"), BYTES.field("image")
    for one, other in ((named, plain), (plain, named)):
        assert common_metadata(one, [pa.schema([other])]).metadata == plain.metadata
    assert common_metadata(named, [IMAGES]).metadata == named.metadata
    assert not common_metadata(plain, [pa.schema([pa.field("image", pa.binary())])]).metadata
