"""Files that a worker brings to its machine: hashed, private, bounded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fsspec
import pytest

from vlpipe.pipeline.engine.worker import local_files
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.storage.digests import tree_digest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local_files._here.cache_clear()  # what a new process knows
    return tmp_path / "vlpipe" / "files"


def remote(name: str, data: bytes) -> File:
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/remote/{name}", data)
    return File(path=f"memory://remote/{name}", step="maker", digest=hashlib.sha256(data).hexdigest())


def test_a_download_is_hashed_and_read_again_from_the_cache(cache: Path) -> None:
    file = remote("a.txt", b"weights")
    here = Path(local_files._here(file).path)
    assert here.read_bytes() == b"weights"
    fsspec.filesystem("memory").rm("/remote/a.txt")
    local_files._here.cache_clear()
    assert Path(local_files._here(file).path) == here
    assert [p.name for p in cache.iterdir()] == [f"{file.digest}.txt"]  # readers go by the ending


def test_bytes_that_are_not_what_was_meant_are_not_read(cache: Path) -> None:
    file = remote("b.txt", b"weights")
    fsspec.filesystem("memory").pipe_file("/remote/b.txt", b"others")
    said = r"^memory://remote/b.txt has sha256 .*, but the manifest of the step that made it says .*; `vlpipe verify` lists"
    with pytest.raises(VlpipeError, match=said):
        local_files._here(file)
    assert list(cache.iterdir()) == []


def test_a_folder_has_the_digest_of_its_files(cache: Path) -> None:
    a, b = remote("model/config.json", b"{}"), remote("model/sub/vocab.txt", b"a")
    digest = tree_digest({"config.json": a.digest, "sub/vocab.txt": b.digest})
    here = Path(local_files._here(File(path="memory://remote/model", step="maker", digest=digest)).path)
    assert (here / "sub" / "vocab.txt").read_bytes() == b"a"


def test_nobody_else_can_plant_a_file(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "vlpipe").mkdir(mode=0o777)
    local_files._here(remote("c.txt", b"weights"))
    assert (tmp_path / "vlpipe").stat().st_mode & 0o077 == 0


def test_the_oldest_downloads_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPIPE_CACHE_GB", str(25 / 2**30))
    made = [remote(f"{n}.txt", bytes([65 + n]) * 10) for n in range(4)]
    for n, file in enumerate(made):
        here = Path(local_files._here(file).path)
        os.utime(here, (n, n))
    assert {p.stem for p in cache.iterdir()} == {made[2].digest, made[3].digest}
