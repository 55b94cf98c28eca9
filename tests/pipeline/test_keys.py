"""Digests of outside files: what counts in a folder, and what is read again. Parameters that are in keys."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vlpipe.pipeline.engine.records.file_digests import FileDigests
from vlpipe.pipeline.engine.records.keys import key_params
from vlpipe.pipeline.stage import MapStage
from vlpipe.pipeline.storage.digests import sha256_json
from vlpipe.pipeline.storage.store import Store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_folder_is_its_files_links_to_files_and_nothing_else(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    (folder / "b" / "c").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "x.jpg").write_bytes(b"x")
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "b" / "c" / "d.jpg").write_bytes(b"d")
    (folder / "b" / "to_file.jpg").symlink_to(elsewhere / "x.jpg")
    (folder / "to_folder").symlink_to(elsewhere)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    listing = [["a.jpg", sha256(b"a")], ["b/c/d.jpg", sha256(b"d")], ["b/to_file.jpg", sha256(b"x")]]
    digests = FileDigests(Store(str(tmp_path / "root")))
    assert digests.of(str(folder)) == sha256_json("tree", listing)
    assert digests.of(str(folder / "a.jpg")) == sha256(b"a")


def test_a_file_is_read_again_when_its_size_or_time_changed(tmp_path: Path) -> None:
    store, file = Store(str(tmp_path / "root")), tmp_path / "å.txt"

    def digest() -> str:
        digests = FileDigests(store)
        found = digests.of(str(file))
        digests.save()
        return found

    file.write_bytes(b"old")
    os.utime(
        file, ns=(10**18, 10**18)
    )  # what was written just now may change again within a tick of the clock
    before = file.stat()
    assert digest() == sha256(b"old")
    file.write_bytes(b"new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest() == sha256(b"old")  # as remembered under the root
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert digest() == sha256(b"new")
    file.write_bytes(b"newer")
    assert digest() == sha256(b"newer")


@dataclass(frozen=True, kw_only=True)
class Before(MapStage):
    by: int = 2


@dataclass(frozen=True, kw_only=True)
class After(Before):
    ADDED: ClassVar[frozenset[str]] = frozenset({"names", "rate"})
    names: list[str] = field(default_factory=list)
    rate: float = 1.0


def test_a_parameter_that_was_added_is_in_the_key_only_with_another_value() -> None:
    assert key_params(After()) == key_params(After(rate=1)) == key_params(Before())
    assert key_params(After(names=["a"])) == {**key_params(Before()), "names": ["a"]}
    assert key_params(After(rate=0.5)) == {**key_params(Before()), "rate": 0.5}


@dataclass(frozen=True, kw_only=True)
class Drawn(MapStage):
    ORDERED: ClassVar[frozenset[str]] = frozenset({"shares"})
    shares: dict[str, dict[str, float]]
    more: dict[str, int] = field(default_factory=dict)


def test_the_order_of_a_mapping_is_in_the_key_where_rows_depend_on_it() -> None:
    """`shares: {web: 0.3, synth: 0.7}` in another order draws other texts, but sorted JSON is the same for both."""

    def key(*names: str, inner: str = "ab") -> str:
        shares = {name: dict.fromkeys(inner, 1.0) for name in names}
        return sha256_json(key_params(Drawn(shares=shares, more=dict.fromkeys(names, 1))))

    assert len({key("synth", "web"), key("web", "synth"), key("synth", "web", inner="ba")}) == 3
    plain = Drawn(shares={"synth": {}, "web": {}}, more={"web": 1, "synth": 1})
    assert key_params(plain) == {"shares": {"synth": {}, "web": {}}, "more": {"web": 1, "synth": 1}}
