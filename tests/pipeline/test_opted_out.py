"""What the root remembers of who said no: whole after any kill, never behind what was promised, one file per write."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import left
from kill_points import forked, kill_at

from vlpipe.pipeline.engine.records.forgotten import hashed
from vlpipe.pipeline.inspect import opted_out
from vlpipe.pipeline.inspect.opted_out import hash_of_url, read_hashes
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.web import opted_out as writer
from vlpipe.stages.web.opted_out import OptedOut


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WRITE_S", 0.0)


def h(name: str) -> str:
    """A hash as URLs have them, for a name in a test."""
    return hash_of_url(f"http://{name}.test/")


def opened(root: Store | None) -> OptedOut:
    one = OptedOut(root)
    one.load()
    return one


def noted(root: Store, *pairs: tuple[str, str]) -> OptedOut:
    one = opened(root)

    async def talk() -> None:
        for hash_, evidence in pairs:
            one.note(h(hash_), evidence)
            await one.kept()

    asyncio.run(talk())
    return one


def said_no(root: Store) -> set[str]:
    return {row[0] for name in opted_out.part_names(root) for row in opted_out.read_part(root, name)}


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "folder" else f"memory://noted{tmp_path.name}")


def test_what_one_run_kept_the_next_one_knows(root: Store) -> None:
    assert opened(root).said(h("a")) == []
    assert not root.exists("opted_out")
    noted(root, ("a", "noai"), ("b", "none"), ("a", "noai"), ("a", "tdm: 1"))
    again = opened(root)
    assert [list(again.said(h(name))) for name in "abc"] == [["noai", "tdm: 1"], ["none"], []]
    assert said_no(root) == {h("a"), h("b")}
    assert read_hashes(root).tolist() == sorted(bytes.fromhex(h(name)).rstrip(b"\x00") for name in "ab")
    assert root.list("opted_out") == ["000000.parquet"]


def test_full_parts_are_left_alone(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PART_ROWS", 3)
    noted(root, *((f"{n}", "noai") for n in range(7)))
    full = root.read_bytes("opted_out/000001.parquet")
    noted(root, *((f"{n}", "noai") for n in range(4, 11)))
    assert root.list("opted_out") == [f"00000{n}.parquet" for n in range(4)]
    assert root.read_bytes("opted_out/000001.parquet") == full
    sizes = [len(opted_out.read_part(root, name)) for name in root.list("opted_out")]
    assert sizes == [3, 3, 3, 2]
    assert said_no(root) == {h(f"{n}") for n in range(11)}


def test_what_comes_during_a_write_goes_into_the_next_one(tmp_path: Path) -> None:
    writes = []

    class Counting(OptedOut):
        def _put(self, rows: Any) -> None:
            writes.append(len(rows))
            time.sleep(0.05)
            super()._put(rows)

    one = Counting(Store(str(tmp_path)))

    async def noting(n: int) -> None:
        await asyncio.sleep(0.001 * n)
        one.note(h(f"{n}"), "noai")
        await one.kept()
        assert h(f"{n}") in said_no(Store(str(tmp_path)))  # whoever is told, it is there

    async def all_of_them() -> None:
        await asyncio.gather(*(noting(n) for n in range(40)))

    asyncio.run(all_of_them())
    assert writes[-1] == 40
    assert len(writes) <= 4


def test_what_could_not_be_written_is_said_and_written_later(tmp_path: Path) -> None:
    one = opened(Store(str(tmp_path)))
    (tmp_path / "opted_out").write_text("in the way")

    async def talk() -> None:
        one.note(h("a"), "noai")
        with pytest.raises(OSError, match="opted_out"):
            await one.kept()
        os.unlink(tmp_path / "opted_out")
        one.note(h("b"), "noai")
        await one.kept()

    asyncio.run(talk())
    assert said_no(Store(str(tmp_path))) == {h("a"), h("b")}


def test_without_a_root_nothing_is_written() -> None:
    one = OptedOut()
    one.load()
    one.note(h("a"), "noai")
    asyncio.run(one.kept())
    assert one.said(h("a")) == ["noai"]


@pytest.mark.slow
def test_killed_at_every_point_what_was_promised_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PART_ROWS", 3)

    def work(folder: Path, point: int) -> int:
        if point:
            kill_at(point)

        async def talk() -> None:
            one = opened(Store(str(folder / "root")))
            for n in range(5):
                one.note(h(f"{n}"), "noai")
                await one.kept()
                (folder / "promised").write_text(str(n + 1))

        asyncio.run(talk())
        return 0

    point, status = 0, -9
    while status:
        point += 1
        folder = tmp_path / str(point)
        folder.mkdir()
        status = forked(lambda folder=folder, point=point: work(folder, point))
        promised = int((folder / "promised").read_text()) if (folder / "promised").exists() else 0
        found = said_no(Store(str(folder / "root")))
        assert found in [{h(f"{n}") for n in range(m)} for m in (promised, promised + 1)]
        work(folder, 0)  # in this process: the run after the kill
        assert said_no(Store(str(folder / "root"))) == {h(f"{n}") for n in range(5)}
        assert sorted(left(folder / "root")) == ["opted_out/000000.parquet", "opted_out/000001.parquet"]
    assert point > 20


def test_the_hash_is_that_of_forgotten_urls() -> None:
    same = ["http://A.test/x", "https://a.test:443/x#y", "http://u@a.test./x"]
    assert {hash_of_url(url) for url in same} == {hashed("url", "a.test/x")}


def test_the_folder_opens_as_any_parquet_does(tmp_path: Path) -> None:
    noted(Store(str(tmp_path)), ("a", "noai"))
    table = pq.read_table(tmp_path / "opted_out")
    assert table.schema.equals(opted_out.SCHEMA)
