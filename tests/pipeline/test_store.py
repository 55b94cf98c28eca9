"""Files under a root: listings, files that only one can create; what is nobody's stays."""

import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.errors import LockLost, VlpipeError
from vlpipe.pipeline.storage import exclusive
from vlpipe.pipeline.storage.store import Fence, Store


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(request.getfixturevalue("s3").new_root())
    return Store(str(tmp_path / "root") if request.param == "folder" else f"memory://store{tmp_path.name}")


def test_listings(store: Store) -> None:
    assert store.list("a") == []
    assert store.sizes("a") == {}
    for name, text in (("a/2", b"22"), ("a/1", b""), ("a/deep/3", b"333"), ("b", b"4")):
        store.write_bytes(name, text)
    assert store.list("a") == ["1", "2", "deep"]
    assert store.sizes("a") == {"1": 0, "2": 2}
    assert store.list() == ["a", "b"]
    store.write_bytes("a/4", b"4444")  # an old listing must not hide it
    assert store.sizes("a")["4"] == 4
    Store(store.url).remove("a/4")
    assert "4" not in store.list("a")
    assert not store.exists("a/4")


def test_one_of_many_creates(store: Store) -> None:
    for number in range(5):
        made = with_all(lambda mine, rel: [mine] if exclusive.create(store, rel, mine) else [], f"l/{number}")
        assert made == [store.read_bytes(f"l/{number}")]
    assert store.list("l") == [str(n) for n in range(5)]


def with_all(create: Callable[[bytes, str], list[bytes]], rel: str, num: int = 6) -> list[bytes]:
    """What `create` returns in so many threads that begin at once."""
    start = threading.Barrier(num)

    def one(n: int) -> list[bytes]:
        start.wait()
        return create(bytes([65 + n]), rel)

    with ThreadPoolExecutor(num) as pool:
        return [made for some in pool.map(one, range(num)) for made in some]


def test_a_request_each(s3: S3) -> None:  # noqa: F811
    store = Store(s3.new_root())
    for n in range(3):
        store.write_bytes(f"step/{n}", b"x")
    s3.requests.clear()
    assert list(store.sizes("step")) == store.list("step") == ["0", "1", "2"]
    assert store.list("step/_rejects") == []
    assert [method for method, _ in s3.requests] == ["GET"] * 3
    s3.requests.clear()
    assert store.read_bytes("step/1") == b"x"
    assert [method for method, _ in s3.requests] == ["GET"]


def test_a_store_that_ignores_conditions_is_refused(s3: S3) -> None:  # noqa: F811
    store = Store(s3.new_root())
    s3.ignores_conditions = True
    with pytest.raises(VlpipeError, match="ignores conditional writes"):
        exclusive.create(store, "l/1", b"mine")


def test_a_store_of_which_nothing_is_known_is_refused() -> None:
    class Odd(MemoryFileSystem):
        protocol = "odd"

    fsspec.register_implementation("odd", Odd, clobber=True)
    with pytest.raises(
        VlpipeError, match=r"from writing at once on odd://; a root must be a folder, or on s3"
    ):
        exclusive.create(Store("odd://root"), "l/1", b"mine")


def test_a_root_that_chains_file_systems_is_refused(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/a::b", "simplecache::s3://bucket/root"):
        with pytest.raises(VlpipeError, match="must not contain `::`"):
            Store(url).list()
    assert not list(tmp_path.iterdir())


def test_who_lost_the_lock_writes_nothing(store: Store, tmp_path: Path) -> None:
    store.write_bytes("_lock/000001.json", b'{"run": "mine"}')
    store.write_bytes("step/000000.parquet", b"old")
    done = tmp_path / "done"
    done.mkdir()
    (done / "a").touch()
    store.set_fence(Fence("_lock/000001.json", "mine"))
    worker = pickle.loads(pickle.dumps(store))
    worker.write_bytes("step/000001.parquet", b"mine")
    Store(store.url).write_bytes("_lock/000001.json", b'{"run": "other"}')
    worker = pickle.loads(pickle.dumps(store))
    for attempt in (
        lambda: worker.write_bytes("step/000000.parquet", b"new"),
        lambda: worker.link_or_copy("step/000001.parquet", "step/000000.parquet"),
        lambda: worker.remove("step"),
        lambda: worker.move_in(str(done), "step/artifacts"),
    ):
        with pytest.raises(LockLost, match="another run has taken it over"):
            attempt()
    for content in (b"", b"[]", b"{}"):
        Store(store.url).write_bytes("_lock/000001.json", content)
        with pytest.raises(LockLost):
            worker.write_bytes("step/000000.parquet", b"new")
    Store(store.url).remove("_lock")
    with pytest.raises(LockLost):
        worker.write_bytes("step/000000.parquet", b"new")
    assert store.sizes("step") == {"000000.parquet": 3, "000001.parquet": 4}


def test_the_fence_of_an_object_store_asks_once_for_a_shard(s3: S3) -> None:  # noqa: F811
    store = Store(s3.new_root())
    store.write_bytes("_lock/000001.json", b'{"run": "mine"}')
    store.set_fence(Fence("_lock/000001.json", "mine"))
    s3.requests.clear()
    for name in ("_rejects/000000.parquet", "000000.parquet", "_receipts/000000.json"):
        store.write_bytes(f"step/{name}", b"x")
    assert [method for method, _ in s3.requests] == ["GET", "PUT", "PUT", "PUT"]


def test_of_a_link_only_the_link_goes(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/film").touch()
    store = Store(str(tmp_path / "root"))
    store.write_bytes("a/file", b"x")
    os.symlink(tmp_path / "elsewhere", store.path("link"))
    os.symlink(tmp_path / "nothing", store.path("dangling"))
    for name in ("link", "dangling", "a", "never"):
        store.remove(name)
    assert store.list() == []
    assert (tmp_path / "elsewhere/film").exists()


def test_only_own_parts_are_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    own = [
        f"{name}.0123abcd.part" for name in ("000001.parquet", "1000000.json", "_steps.json", "manifest.json")
    ]
    own += [f"{name}.0123abcd.part" for name in ("_shards.parquet", "forgotten.parquet", "000001.jsonl")]
    others = ["film.mkv.part", "film.0123abcd.part", "1.parquet.0123abcd.part", "000001.parquet.part"]
    others += ["000001.parquet.0123ABCD.part", "_notes.txt.0123abcd.part", "x 000001.parquet.0123abcd.part"]
    for name in own + others:
        store.write_bytes(name, b"")
    for name in ("my.part", "000002.parquet.0123abcd.part"):
        os.mkdir(tmp_path / name)
    store.sweep("")
    assert store.list() == sorted([*others, "my.part", "000002.parquet.0123abcd.part"])
