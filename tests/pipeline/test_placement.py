"""Where steps run: kinds of GPUs, fractions, custom resources, copies on local disks. None of it changes a key."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Runs
from helpers import left, planned, rows, run
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.on_ray.scheduler import ResourceRequest, Room, needed
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import read_batches
from vlpipe.pipeline.storage.local_copies import CopyingStore, local_copy
from vlpipe.pipeline.storage.store import Store, sha256_file

TEXT = """
name: placed
steps:
  numbers: {use: "toys:Numbers", num_rows: 12, shard_rows: 4}
  placed: {use: "toys:Placed", from: numbers}
  actors: {use: "toys:PlacedInActor", from: numbers}
"""
GPU = ("placed.resources.gpus=0.25", "placed.resources.accelerator=A100")
DISK = 'placed.resources.custom={"fast_disk": 1}'


def test_placement_changes_no_key(tmp_path: Path) -> None:
    def keys(*sets: str) -> list[str]:
        return [one.keyed.stage_key for one in planned(tmp_path, TEXT, sets)[0]]

    assert keys(*GPU, DISK, "placed.resources.local_copies=true", "placed.resources.memory_gb=2") == keys()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("gpus=1.5", "gpus: wanted a whole number or a fraction below 1, got 1.5"),
        ("accelerator=A100", "accelerator: A100 needs a GPU; add `gpus: 1`, or a fraction"),
        ('custom={"GPU": 1}', "custom: 'GPU' has a key of its own: cpus, gpus, memory_gb or accelerator"),
        ('custom={"accelerator_type:A100": 1}', "custom: 'accelerator_type:A100' has a key of its own"),
        ('custom={"fast_disk": -1}', "greater than 0"),
    ],
)
def test_a_wrong_placement_is_an_error_of_the_plan(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(VlpipeError, match=re.escape(said)):
        planned(tmp_path, TEXT, (f"placed.resources.{value}",))


def test_a_step_goes_to_a_node_with_its_kind_of_gpu_and_its_custom_resource() -> None:
    room = Room()
    room.join("v100", {"CPU": 8, "GPU": 4, "memory": 1e9, "accelerator_type:V100": 1, "node:10.0.0.1": 1})
    room.join("a100", {"CPU": 8, "GPU": 1, "memory": 1e9, "accelerator_type:A100": 1})
    room.join("disk", {"CPU": 2, "memory": 1e9, "fast_disk": 1, "object_store_memory": 1e9})
    sharing = ResourceRequest("a", needed(1, 0.5, 0, {"accelerator_type:A100": 0.001}, is_task=True))
    near = ResourceRequest("b", needed(1, 0, 0, {"fast_disk": 1}, is_task=True))
    where = [start.held.node for _ in range(3) if (start := room.pick([sharing, near])[0])]
    assert where == ["a100", "a100", "disk"]  # two halves of one GPU
    assert room.pick([near])[0] is None  # its disk is taken, though CPUs are free
    assert not room.holds(
        ResourceRequest("c", needed(1, 1, 0, {"accelerator_type:H100": 0.001}, is_task=True))
    )
    assert not room.holds(
        ResourceRequest("d", needed(1, 2, 0, {"accelerator_type:A100": 0.001}, is_task=True))
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """A cluster of a plain node and one with two A100s and a fast disk, by their own account."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "object_store_memory": 80_000_000}
    unneeded = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, **unneeded})
    more = {"accelerator_type:A100": 1, "fast_disk": 1}
    cluster.add_node(num_gpus=2, resources=more, **common)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_ray_gives_a_step_what_it_asks_for(tmp_path: Path, nodes: str) -> None:
    sets = [*GPU, DISK, "actors.resources.gpus=1", "actors.resources.accelerator=A100"]
    steps = run(tmp_path, TEXT, tuple(sets), address=nodes)
    placed, actors = rows(tmp_path, steps["placed"]), rows(tmp_path, steps["actors"])
    assert set(placed["visible"].to_pylist()) <= {"0", "1"}
    assert set(placed["device"].to_pylist()) == {"cuda"}
    assert set(actors["visible"].to_pylist()) <= {"0", "1"}


@pytest.mark.slow
def test_plan_says_what_a_cluster_lacks(tmp_path: Path, nodes: str) -> None:
    runs = Runs(tmp_path, TEXT)
    runs("plan", "--address", nodes, *(f"--set={one}" for one in (*GPU, DISK)))
    wanted = ("placed.resources.gpus=1", "placed.resources.accelerator=H100")
    said = " ".join(runs("plan", "--address", nodes, *(f"--set={one}" for one in wanted), code=1))
    assert "step 'placed' needs 1 CPU and 1 GPU and H100, and no node has that" in said
    assert "1 CPU, 2 GPU" in said
    assert "1 fast_disk" in said
    assert ", A100" in said
    assert not runs.root.exists()


@pytest.mark.slow
def test_a_shard_of_an_object_store_is_read_from_a_copy(
    tmp_path: Path,
    s3: S3,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    steps = run(tmp_path, TEXT)
    here, there = Store(str(tmp_path / "root")), Store(s3.new_root())
    shard = steps["numbers"].dataset(here).shards[0]
    there.write_bytes(shard.path, here.read_bytes(shard.path))

    copying = CopyingStore(there.url)

    def read(store: Store) -> list[int]:
        return [n for table in read_batches(store, shard, ["n"]) for n in table["n"].to_pylist()]

    s3.requests.clear()
    assert read(there) == [0, 1, 2, 3]
    assert s3.requests
    assert not (tmp_path / "cache" / "vlpipe" / "shards").exists()
    assert read(copying) == read(copying) == [0, 1, 2, 3]
    (copy,) = (tmp_path / "cache" / "vlpipe" / "shards").iterdir()
    assert sha256_file(copy) == shard.digest
    s3.requests.clear()
    assert read(copying) == [0, 1, 2, 3]
    assert s3.requests == []
    there.write_bytes(shard.path, b"damaged")
    with pytest.raises(VlpipeError, match=r"has sha256 .*, but its receipt says"):
        local_copy(there, shard.path, hashlib.sha256(b"other").hexdigest())
    assert local_copy(here, shard.path, shard.digest) == ""  # it is on this disk already


def test_copies_are_bounded(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("VLPIPE_CACHE_GB", str(2500 / 2**30))
    store = Store(s3.new_root())
    digests = []
    for k in range(3):
        data = bytes([k]) * 1000
        store.write_bytes(f"{k}.parquet", data)
        digests.append(hashlib.sha256(data).hexdigest())
        path = local_copy(store, f"{k}.parquet", digests[-1])
        os.utime(path, (k, k))
    assert {path.stem for path in (tmp_path / "vlpipe" / "shards").iterdir()} == set(digests[1:])


def test_copies_change_no_byte(tmp_path: Path) -> None:
    for name, sets in (("a", ()), ("b", ("placed.resources.local_copies=true",))):
        (tmp_path / name).mkdir()
        run(tmp_path / name, TEXT, sets)
    assert left(tmp_path / "a" / "root") == left(tmp_path / "b" / "root")
