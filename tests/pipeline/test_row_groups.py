"""Row groups, joins and batches are bounded in bytes, by a rule that looks at the rows alone."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import run

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.row_groups import MAX_BYTES, joined_up, num_fitting, row_sizes
from vlpipe.pipeline.shard import Heavy, Shard, ShardWriter, heavy, read_batches, write_shard
from vlpipe.pipeline.storage.store import Store

SCHEMA = pa.schema([("id", pa.string()), heavy("image", pa.binary())])
MB = 1 << 20


def images(sizes: list[int], first: int = 0) -> pa.Table:
    data = os.urandom(max(sizes, default=0))
    ids = [f"{k + first:04d}" for k in range(len(sizes))]
    return pa.table({"id": ids, "image": [data[:size] for size in sizes]}, SCHEMA)


def groups(path: Path) -> list[int]:
    meta = pq.read_metadata(path)
    return [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]


@pytest.mark.slow
def test_a_row_group_ends_before_64_mb_or_holds_one_row(tmp_path: Path) -> None:
    sizes = [30 * MB, 30 * MB, 30 * MB, 70 * MB, 10, 10, 63 * MB, 2 * MB]
    whole = images(sizes)
    path = tmp_path / "a.parquet"
    with ShardWriter(str(path), SCHEMA) as writer:
        writer.write(whole)
    assert groups(path) == [2, 1, 1, 3, 1]
    once = path.read_bytes()
    with ShardWriter(str(path), SCHEMA) as writer:  # the same rows, as a stage might have made them
        for k in range(len(sizes)):
            writer.write(whole.slice(k, 1))
    assert path.read_bytes() == once


def test_small_rows_are_grouped_by_their_number_alone(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "a.parquet"), SCHEMA, row_group_rows=10) as writer:
        for start in range(0, 35, 7):
            writer.write(images([100] * 7, start))
    assert groups(tmp_path / "a.parquet") == [10, 10, 10, 5]


@pytest.mark.slow
def test_a_batch_of_joined_rows_is_bounded_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = write_shard(store, "heavy.parquet", [images([20 * MB] * 12)], SCHEMA)
    ids = [f"{k:04d}" for k in range(12) if k % 4]
    light = write_shard(store, "light.parquet", [pa.table({"id": ids})], pa.schema([("id", pa.string())]))
    shard = Shard(
        path=light.path,
        num_rows=9,
        digest=light.digest,
        heavy=(Heavy("image", "heavy.parquet", made.digest),),
    )
    batches = list(read_batches(store, shard, None, ["image"]))
    assert [i for b in batches for i in b["id"].to_pylist()] == ids
    assert all(b.nbytes <= MAX_BYTES + MB for b in batches)
    assert len(batches) == 4  # pieces of 2, 3, 3 and 1 rows, of row groups of 3; no two fit together
    assert all(len(image) == 20 * MB for b in batches for image in b["image"].to_pylist())


def test_small_row_groups_are_joined_in_one_batch(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = write_shard(store, "heavy.parquet", [images([100] * 40)], SCHEMA, row_group_rows=8)
    ids = [f"{k:04d}" for k in range(0, 40, 3)]
    light = write_shard(store, "light.parquet", [pa.table({"id": ids})], pa.schema([("id", pa.string())]))
    shard = Shard(
        path=light.path,
        num_rows=len(ids),
        digest=light.digest,
        heavy=(Heavy("image", "heavy.parquet", made.digest),),
    )
    (batch,) = read_batches(store, shard, None, ["image"])
    assert batch["id"].to_pylist() == ids


def test_a_join_by_ids_that_are_not_unique_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    twice = pa.concat_tables([images([3, 4]), images([5])])
    made = write_shard(store, "heavy.parquet", [twice], SCHEMA)
    light = write_shard(
        store, "light.parquet", [pa.table({"id": ["0000"]})], pa.schema([("id", pa.string())])
    )
    shard = Shard(
        path=light.path,
        num_rows=1,
        digest=light.digest,
        heavy=(Heavy("image", "heavy.parquet", made.digest),),
    )
    with pytest.raises(VlpipeError, match=r"heavy.parquet has id '0000' more than once, so image cannot"):
        list(read_batches(store, shard, None, ["image"]))


def test_sizes_of_rows_do_not_depend_on_chunks_slices_or_what_lies_under_nulls() -> None:
    kinds = {
        "s": pa.array(["abc", None, "", "de"]),
        "b": pa.array([b"x" * 10, b"", None, b"y"], pa.large_binary()),
        "n": pa.array([1, 2, None, 4], pa.int32()),
        "t": pa.array([True, None, False, True]),
        "l": pa.array([["ab", "c"], None, [], ["def"]]),
        "f": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        "o": pa.array([[{"a": "xy", "b": 1}], [], None, [{"a": None, "b": 2}] * 2]),
        "z": pa.nulls(4),
    }
    table = pa.table(kinds)
    sizes = row_sizes(table)
    assert sizes.tolist() == [
        3 + 10 + 4 + 0 + 3 + 8 + (2 + 8),
        0 + 0 + 4,
        0 + 0 + 4 + 8,
        2 + 1 + 4 + 3 + 8 + 16,
    ]
    cut = pa.concat_tables([table.slice(0, 1), table.slice(1, 2), table.slice(3)])
    assert row_sizes(cut).tolist() == sizes.tolist()
    assert row_sizes(table.slice(2)).tolist() == sizes[2:].tolist()
    assert row_sizes(table.slice(0, 0)).tolist() == []
    assert all(table.slice(a, b - a).nbytes >= sizes[a:b].sum() for a, b in pairwise(range(5)))


def test_how_many_fit() -> None:
    table = images([10, 10, 10, 10])
    of = int(row_sizes(table)[0])
    assert [num_fitting(table, n) for n in (1, of, 2 * of - 1, 2 * of, 100 * of)] == [1, 1, 1, 2, 4]
    pieces = [table.slice(k, 1) for k in range(4)]
    assert [t.num_rows for t in joined_up(pieces, 2 * of)] == [2, 2]
    assert [t.num_rows for t in joined_up(pieces, 1)] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_row_group_of_more_than_2_gib_is_read_by_a_step_below(tmp_path: Path) -> None:
    """512 images of 4.4 MB. In a process of its own, whose peak is measured."""
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from helpers import rows, run
text = '''
steps:
  a: {{use: "odd_toys:Pictures", num_rows: 512, num_bytes: 4400000}}
  s: {{use: "toys:Scale", from: a}}
  b: {{use: "toys:Payload", from: s}}
'''
steps = run(Path({str(tmp_path)!r}), text)
assert rows(Path({str(tmp_path)!r}), steps["b"])["size"].to_pylist() == [4_400_000] * 512
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 7_000


@pytest.mark.slow
def test_a_step_with_large_rows_from_end_to_end(tmp_path: Path) -> None:
    text = 'steps:\n  a: {use: "odd_toys:Pictures", num_rows: 3, num_bytes: 40000000}\n'
    text += '  s: {use: "toys:Scale", from: a}\n  b: {use: "toys:Payload", from: s}\n'
    steps = run(tmp_path, text)
    (path,) = (tmp_path / "root").glob("a-*/000000.parquet")
    assert groups(path) == [1, 1, 1]
    assert np.all([r.shard.num_rows == 3 for one in steps.values() for r in one.receipts])
