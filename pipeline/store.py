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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec

SMALL_BYTES = 1 << 18


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
        fs, base = fsspec.core.url_to_fs(self.url)
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
        """Sorted names in a folder; empty when it does not exist."""
        if not self.fs.exists(self.path(rel)):
            return []
        self.fs.invalidate_cache()
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.path(rel), detail=False))

    def sizes(self, rel: str = "") -> dict[str, int]:
        """Name -> bytes of the files in a folder, from one listing; empty when it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path(rel), detail=True)
        except FileNotFoundError:
            return {}
        return {str(f["name"]).rsplit("/", 1)[-1]: int(f["size"] or 0) for f in found if f["type"] == "file"}

    def open(self, rel: str) -> IO[bytes]:
        if self.is_local:
            return open(self.path(rel), "rb")
        handle: IO[bytes] = self.fs.open(self.path(rel), "rb")
        return handle

    def read_bytes(self, rel: str) -> bytes:
        with self.open(rel) as file:
            return file.read()

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


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
