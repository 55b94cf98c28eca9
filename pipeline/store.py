"""Files under one root, through fsspec: atomic writes, listings, JSON.

Local and network file systems: a `.part` unique to the attempt, fsync of file and folder (fsspec does neither), rename.
Object stores (`s3://`, `gs://`, `memory://`): one PUT to the final name, which is atomic there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec

from vlpipe.pipeline.errors import VlpipeError

SMALL_BYTES = 1 << 18
READERS = 32  # requests at once to an object store: each waits for the network, not for the processor


def sha256_file(path: str | Path) -> str:
    with open(path, "rb", buffering=0) as file:
        found = hashlib.sha256(file.read(SMALL_BYTES))  # most files: `file_digest` makes a buffer for each
        while block := file.read(SMALL_BYTES):
            found.update(block)
        return found.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces to vary, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Store:
    """A root folder or URL. Every path below is relative to it. Picklable: workers open their own file system."""

    url: str

    @cached_property
    def _fs_base(self) -> tuple[Any, str]:
        if "::" in self.url:
            raise VlpipeError(
                f"{self.url}: a folder's name must not hold `::`, which chains file systems in a URL"
            )
        # no cache of listings: other processes write here, and an old listing hides what they wrote
        options = {"use_listings_cache": False} if "://" in self.url else {}
        fs, base = fsspec.core.url_to_fs(self.url, **options)
        return fs, str(base).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "url", state["url"])

    @property
    def fs(self) -> Any:
        return self._fs_base[0]

    @property
    def is_local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def path(self, rel: str) -> str:
        """What the file system calls it; for a local root an absolute path."""
        return f"{self._fs_base[1]}/{rel}" if rel else self._fs_base[1]

    def exists(self, rel: str) -> bool:
        return bool(self.fs.exists(self.path(rel)))

    def size(self, rel: str) -> int:
        return int(self.fs.size(self.path(rel)))

    def list(self, rel: str = "") -> list[str]:
        """Sorted names in a folder, from one request; empty when it does not exist."""
        if not self.is_local:
            return sorted(_name(entry) for entry in self._entries(rel))
        try:
            return sorted(os.listdir(self.path(rel)))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [os.path.basename(self.path(rel))]

    def sizes(self, rel: str) -> dict[str, int]:
        """Name -> bytes of every file in a folder, folders in it left out; from one listing."""
        if not self.is_local:
            files = (e for e in self._entries(rel) if e["type"] == "file")
            return dict(sorted((_name(e), int(e["size"])) for e in files))
        found = {}
        try:
            with os.scandir(self.path(rel)) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # removed since it was listed
                        if entry.is_file():
                            found[entry.name] = entry.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return dict(sorted(found.items()))

    def _entries(self, rel: str) -> Sequence[dict[str, Any]]:
        """One listing of a folder of an object store."""
        path = self.path(rel)
        self.fs.invalidate_cache(path)
        try:
            found: Sequence[dict[str, Any]] = self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [e for e in found if e["type"] == "file" or e["name"].rstrip("/") != path]

    def open(self, rel: str) -> IO[bytes]:
        if self.is_local:
            return open(self.path(rel), "rb")
        handle: IO[bytes] = self.fs.open(self.path(rel), "rb")
        return handle

    def read_bytes(self, rel: str) -> bytes:
        if not self.is_local:
            return bytes(self.fs.cat_file(self.path(rel)))  # one request; `open` asks for the size first
        with open(self.path(rel), "rb") as file:
            return file.read()

    def read_many(self, rels: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of files in the order given; from an object store up to `READERS` at once.

        Raises FileNotFoundError when it comes to one that is not there.
        """
        if self.is_local:
            yield from ((rel, self.read_bytes(rel)) for rel in rels)
            return
        asked: deque[tuple[str, Future[bytes]]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            try:
                for rel in rels:
                    asked.append((rel, pool.submit(self.read_bytes, rel)))
                    if len(asked) > 2 * READERS:  # what was read and not taken yet is bounded too
                        first, content = asked.popleft()
                        yield first, content.result()
                while asked:
                    first, content = asked.popleft()
                    yield first, content.result()
            finally:
                for _, content in asked:
                    content.cancel()

    def read_json(self, rel: str) -> Any:
        return json.loads(self.read_bytes(rel))

    def write_bytes(self, rel: str, data: bytes, *, sync_folder: bool = True) -> None:
        with self.writing(rel, sync_folder=sync_folder) as part:
            Path(part).write_bytes(data)

    def create(self, rel: str, data: bytes) -> bool:
        """Write a file that must not be there yet; False when it is. Atomic on a local root only."""
        if not self.is_local:
            if self.exists(rel):
                return False
            self.write_bytes(rel, data)
            return True
        final = self.path(rel)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        part = f"{final}.{uuid.uuid4().hex[:8]}.part"
        Path(part).write_bytes(data)
        try:
            os.link(part, final)
        except FileExistsError:
            return False
        finally:
            os.unlink(part)
        return True

    def write_json(self, rel: str, value: Any, *, sync_folder: bool = True) -> None:
        self.write_bytes(rel, canonical_json(value), sync_folder=sync_folder)

    @contextmanager
    def writing(self, rel: str, *, sync_folder: bool = True) -> Iterator[str]:
        """Yield a local path to write to; on leaving, its bytes appear under the final name at once, or not at all.

        sync_folder=False leaves the name to `sync`, later and for many files at once: a power cut may take the file back
        (it is then made again), never part of it. Half of the cost of a small commit is the folder's fsync.
        """
        final = self.path(rel)
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="vlpipe-") as folder:
                part = f"{folder}/part"
                yield part
                self.fs.put_file(part, final)
            return
        os.makedirs(os.path.dirname(final), exist_ok=True)
        part = f"{final}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield part
            _fsync(part)
            os.replace(part, final)
            if sync_folder:
                _fsync(os.path.dirname(final))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def link_or_copy(self, src: str, dst: str) -> None:
        """Make `dst` the same file as `src`; a hard link where the file system has them. Finished files never change."""
        if not self.is_local:
            self.fs.copy(self.path(src), self.path(dst))
            return
        with self.writing(dst) as part:
            try:
                os.link(self.path(src), part)
            except OSError:  # another device, or no hard links here
                shutil.copyfile(self.path(src), part)

    def remove(self, rel: str) -> None:
        """Remove a file or folder; nothing happens when it is not there."""
        if self.fs.exists(self.path(rel)):
            self.fs.rm(self.path(rel), recursive=True)

    def sync(self, *folders: str) -> None:
        """Make the names in these folders durable."""
        for folder in folders:
            if self.is_local and os.path.isdir(self.path(folder)):
                _fsync(self.path(folder))

    def sweep(self, rel: str) -> None:
        """Remove the `.part` files a killed run left in a folder; call it only when nothing else writes there."""
        for name in self.list(rel):
            if name.endswith(".part"):
                self.remove(f"{rel}/{name}" if rel else name)

    def move_in(self, folder: str, rel: str) -> None:
        """Move a finished local folder to `rel`, whole."""
        if not self.is_local:
            self.fs.put(folder.rstrip("/") + "/", self.path(rel) + "/", recursive=True)
            return
        for sub, _, names in os.walk(folder):
            for name in names:
                _fsync(os.path.join(sub, name))
        if os.path.exists(self.path(rel)):
            shutil.rmtree(self.path(rel))
        os.makedirs(os.path.dirname(self.path(rel)), exist_ok=True)
        shutil.move(folder, self.path(rel))
        _fsync(os.path.dirname(self.path(rel)))


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
