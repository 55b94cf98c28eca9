"""The driver's record of answers, on a disk and on an object store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from answer_toys import answer

from vlpipe.pipeline.engine.records import answers as record
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.endpoint import book as module
from vlpipe.stages.endpoint.book import Book, Keeper


class Worker:
    """Notes what the driver sends it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def send(self, message: Any) -> None:
        self.heard.append(message)


async def until(true: Any) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")


def test_answers_are_found_while_and_after_they_are_written(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYNC_S", 0.05)

    async def go() -> None:
        book, one, other = Book(root), Worker(), Worker()
        book.load()
        keeper = Keeper(book)
        keeper.heard(one, {"keep": [answer(1), answer(2)]})
        asked = [[answer(n).id, "r"] for n in (1, 3)]
        keeper.heard(other, {"find": 7, "asked": asked})
        assert other.heard.pop() == {
            "found": 7,
            "files": [],
            "answers": [answer(1)],
            "more": False,
            "root": root.url,
        }
        await until(lambda: record.segments(root))
        (paths,) = record.segments(root).values()
        assert [a for path in paths for a in record.answers_in(root.read_bytes(path))] == [
            answer(1),
            answer(2),
        ]
        keeper.heard(one, {"keep": [answer(3)]})
        keeper.heard(one, {"commit": 9})
        await until(lambda: one.heard)
        assert one.heard.pop() == {"committed": 9}
        keeper.heard(other, {"find": 8, "asked": asked})
        assert (other.heard[-1]["files"], other.heard[-1]["answers"]) == ([0], [])
        assert {key[0] for key in record.read_part(root, 0)} == {answer(n).id for n in (1, 2, 3)}
        assert record.segments(root) == {}

    asyncio.run(go())


def test_a_worker_that_dies_leaves_its_answers(root: Store) -> None:
    async def go() -> None:
        book, one = Book(root), Worker()
        book.load()
        Keeper(book).heard(one, {"keep": [answer(1)]})
        Keeper(book).left(one)
        assert book.find([[answer(1).id, "r"]])[1] == [answer(1)]
        await until(lambda: record.part_names(root))
        await until(lambda: not book._sealing)
        assert book.find([[answer(1).id, "r"]]) == ([0], [])

    asyncio.run(go())


def test_a_full_segment_becomes_a_file_before_the_shard_ends(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEAL_BYTES", 500)

    async def go() -> None:
        book, one = Book(root), Worker()
        book.load()
        for n in range(6):
            book.add(one, [answer(n)])
        await until(lambda: len(record.part_names(root)) == 2)
        await until(lambda: not book._sealing)
        files, answers = book.find([[answer(n).id, "r"] for n in range(6)])
        assert files == [0, 1]
        assert {a.id for a in answers} <= {answer(n).id for n in range(6)}

    asyncio.run(go())


def test_a_disk_that_fails_is_told_to_the_worker(tmp_path: Path) -> None:
    async def go() -> None:
        root = Store(str(tmp_path / "root"))
        book, one = Book(root), Worker()
        book.load()
        Path(tmp_path / "root").write_text("a file where the root should be")
        Keeper(book).heard(one, {"keep": [answer(1)]})
        assert "root" in one.heard[-1]["error"]

    asyncio.run(go())


def test_a_long_reply_comes_in_parts(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLY_ANSWERS", 2)

    async def go() -> None:
        book, one = Book(root), Worker()
        book.load()
        book.add(one, [answer(n) for n in range(5)])
        Keeper(book).heard(one, {"find": 1, "asked": [[answer(n).id, "r"] for n in range(5)]})
        assert [len(m["answers"]) for m in one.heard] == [2, 2, 1]
        assert [m["more"] for m in one.heard] == [True, True, False]

    asyncio.run(go())
