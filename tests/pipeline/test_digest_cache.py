"""The per-user cache of digests: used, bounded, private, and never trusted when damaged."""

import json
import os
import stat
import warnings
from pathlib import Path

import pytest

from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.storage import digest_cache
from vlpipe.pipeline.storage.digest_cache import DigestCache

LONG_AGO = 1_600_000_000_000_000_000
DIGEST = "ab" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vlpipe"


def keep(path: str, digest: str = DIGEST) -> None:
    cache = DigestCache()
    cache.put(path, 3, LONG_AGO, digest)
    cache.save()


def test_a_later_process_finds_what_this_one_hashed(home: Path) -> None:
    keep("/data/list.parquet")
    again = DigestCache()
    assert again.get("/data/list.parquet", 3, LONG_AGO) == DIGEST
    assert again.get("/data/list.parquet", 4, LONG_AGO) is None
    assert again.get("/data/list.parquet", 3, LONG_AGO + 1) is None
    assert again.get("/data/other.parquet", 3, LONG_AGO) is None


def test_only_its_owner_may_read_it(home: Path) -> None:
    home.mkdir(mode=0o755)
    keep("/data/list.parquet")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "digests.json").stat().st_mode) == 0o600
    assert [p.name for p in home.iterdir()] == ["digests.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"/data/list.parquet": [3, 16000',
        b"[]",
        b'{"/data/list.parquet": "abc"}',
        b'{"/data/list.parquet": [3, 1600000000000000000, "not a digest"]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_one_is_made_anew_with_a_warning(home: Path, damage: bytes) -> None:
    home.mkdir()
    (home / "digests.json").write_bytes(damage)
    with pytest.warns(VlpipeWarning, match=r"digests\.json is damaged and is rebuilt"):
        cache = DigestCache()
    assert cache.get("/data/list.parquet", 3, LONG_AGO) is None
    cache.put("/data/list.parquet", 3, LONG_AGO, DIGEST)
    cache.save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DigestCache().get("/data/list.parquet", 3, LONG_AGO) == DIGEST


def test_what_was_used_longest_ago_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_cache, "MAX_FILES", 3)
    for name in "abc":
        keep(f"/{name}")
    cache = DigestCache()
    assert cache.get("/a", 3, LONG_AGO)
    cache.put("/d", 3, LONG_AGO, DIGEST)
    cache.save()
    assert list(json.loads((home / "digests.json").read_bytes())) == ["/c", "/a", "/d"]


def test_two_processes_at_once_both_keep_theirs(home: Path) -> None:
    one, two = DigestCache(), DigestCache()
    one.put("/a", 3, LONG_AGO, DIGEST)
    two.put("/b", 3, LONG_AGO, DIGEST)
    one.save()
    two.save()
    assert list(json.loads((home / "digests.json").read_bytes())) == ["/a", "/b"]


def test_a_file_written_just_now_is_hashed_again(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("abc")
    cache = DigestCache()
    about = file.stat()
    cache.put(str(file), about.st_size, about.st_mtime_ns, DIGEST)
    assert cache.get(str(file), about.st_size, about.st_mtime_ns) is None


def test_a_folder_that_cannot_be_made_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(VlpipeWarning, match="cannot cache the digests"):
        cache = DigestCache()
    cache.put("/a", 3, LONG_AGO, DIGEST)
    cache.save()
    assert cache.get("/a", 3, LONG_AGO) == DIGEST


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_not_trusted(home: Path) -> None:
    keep("/a")
    os.chown(home, 65534, 65534)
    with pytest.warns(VlpipeWarning, match="belongs to another user"):
        assert DigestCache().get("/a", 3, LONG_AGO) is None
