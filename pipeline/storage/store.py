"""Files under one root, through fsspec: atomic writes, listings, JSON.

Local and network file systems: write a `.part` unique to the attempt, fsync file and folder (fsspec does not), rename.
Object stores (`s3://`, `gs://`, `memory://`): one PUT to the final name, which is atomic there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import IO, Any

import fsspec
import fsspec.asyn

from vlpipe.pipeline.errors import LockLost, VlpipeError
from vlpipe.pipeline.storage.file_names import is_part

SMALL_BYTES = 1 << 18
FENCE_S = 1.0  # seconds that a fence check is valid on an object store: one request per shard, not per file


def sha256_file(path: str | Path) -> str:
    """Returns the sha256 of a local file, as 64 hexadecimal digits."""
    with open(path, "rb", buffering=0) as file:
        return sha256_of(file)


def sha256_of(file: FileIO) -> str:
    """Returns the sha256, in hexadecimal, of the bytes from an unbuffered file's current position to its end."""
    found = hashlib.sha256(file.read(SMALL_BYTES))  # enough for most files; `file_digest` allocates a buffer
    while block := file.read(SMALL_BYTES):
        found.update(block)
    return found.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Returns the canonical bytes of a JSON value: sorted keys, fixed whitespace, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Fence:
    """Condition for a run's writes: the lock file `rel` still names the run."""

    rel: str
    run: str


@dataclass(frozen=True)
class Store:
    """A root folder or URL; `rel` paths are relative to it. Picklable: workers open their own file system.

    fence: set while a run holds the root's lock, and carried to its workers. They read the lock again before a file
    gets its final name, so a worker that outlives its run overwrites nothing of the next run.
    """

    url: str
    fence: Fence | None = field(default=None, compare=False)

    @cached_property
    def _fs_base(self) -> tuple[Any, str]:
        if "::" in self.url:
            raise VlpipeError(
                f"{self.url}: the name of a folder must not contain `::`, which chains file systems in a URL"
            )
        # no cache of listings: it would hide files that other processes write here
        options = {"use_listings_cache": False} if "://" in self.url else {}
        fs, base = fsspec.core.url_to_fs(self.url, **options)
        return fs, str(base).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "fence": self.fence}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def set_fence(self, fence: Fence | None) -> None:
        object.__setattr__(self, "fence", fence)

    @cached_property
    def _asked_at(self) -> list[float]:
        return [-FENCE_S]

    def check_fence(self) -> None:
        """Raises LockLost if the run that writes here no longer holds the root."""
        if self.fence is None or (not self.is_local and time.monotonic() - self._asked_at[0] < FENCE_S):
            return
        asked = time.monotonic()
        try:
            held = json.loads(self.read_bytes(self.fence.rel))["run"] == self.fence.run
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            held = False
        if not held:
            raise LockLost(f"lost the lock of {self.url}: another run has taken it over; nothing was written")
        self._asked_at[0] = asked

    @property
    def fs(self) -> Any:
        return self._fs_base[0]

    @property
    def is_local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def path(self, rel: str) -> str:
        """Returns the path on the file system; absolute for a local root."""
        return f"{self._fs_base[1]}/{rel}" if rel else self._fs_base[1]

    def local_path(self, rel: str, digest: str = "") -> str:
        """Returns the path of a local file with the content of `rel`, empty if there is none. digest: its sha256."""
        return self.path(rel) if self.is_local else ""

    def exists(self, rel: str) -> bool:
        return bool(self.fs.exists(self.path(rel)))

    def size(self, rel: str) -> int:
        return int(self.fs.size(self.path(rel)))

    def list(self, rel: str = "") -> list[str]:
        """Returns the sorted names in a folder, from one request; empty if it does not exist."""
        if not self.is_local:
            return sorted(_name(entry) for entry in self._entries(rel))
        try:
            return sorted(os.listdir(self.path(rel)))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [os.path.basename(self.path(rel))]

    def sizes(self, rel: str) -> dict[str, int]:
        """Returns name -> size in bytes of every file in a folder, without subfolders; empty if it does not exist."""
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
        """Returns fsspec's entries of a folder on an object store, from one listing."""
        path = self.path(rel)
        self.fs.invalidate_cache(path)
        try:
            found: Sequence[dict[str, Any]] = _listed(self.fs, path)
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
            return bytes(self.fs.cat_file(self.path(rel), **self._one_request))
        with open(self.path(rel), "rb") as file:
            return file.read()

    @cached_property
    def _one_request(self) -> dict[str, Any]:
        """Options that make `cat_file` one request: by default s3fs asks for the size first, to read in pieces."""
        given = inspect.signature(self.fs._cat_file).parameters if hasattr(self.fs, "_cat_file") else {}
        return {"max_concurrency": 1} if "s3" in self.fs.protocol and "max_concurrency" in given else {}

    def read_json(self, rel: str) -> Any:
        return json.loads(self.read_bytes(rel))

    def write_bytes(self, rel: str, data: bytes, *, sync_folder: bool = True) -> None:
        """Writes a file atomically; see `writing`."""
        with self.writing(rel, sync_folder=sync_folder) as part:
            Path(part).write_bytes(data)

    def write_json(self, rel: str, value: Any, *, sync_folder: bool = True) -> None:
        self.write_bytes(rel, canonical_json(value), sync_folder=sync_folder)

    @contextmanager
    def writing(self, rel: str, *, sync_folder: bool = True) -> Iterator[str]:
        """Yields a local path to write to. On exit the complete file gets its final name; after an error nothing does.

        sync_folder=False skips the directory fsync, half the cost of a small commit; call `sync` once per folder. After a
        power failure the file is complete or absent. Raises LockLost if another run has taken over the root.
        """
        final = self.path(rel)
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="vlpipe-") as folder:
                part = f"{folder}/part"
                yield part
                self.check_fence()
                self.fs.put_file(part, final)
            return
        os.makedirs(os.path.dirname(final), exist_ok=True)
        part = f"{final}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield part
            fsync(part)
            self.check_fence()
            os.replace(part, final)
            if sync_folder:
                fsync(os.path.dirname(final))
        except BaseException as error:
            Path(part).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (
                None,
                part,
            ):  # errors of `write` name no file
                error.filename = final
            raise

    def link_or_copy(self, src: str, dst: str) -> None:
        """Makes `dst` a hard link to `src` (finished files never change), or else a copy. Replaces an existing `dst`."""
        if not self.is_local:
            self.check_fence()
            self.fs.copy(self.path(src), self.path(dst))
            return
        with self.writing(dst) as part:
            try:
                os.link(self.path(src), part)
            except OSError:  # another device, or no hard links here
                shutil.copyfile(self.path(src), part)

    def remove(self, rel: str) -> None:
        """Removes a file or folder; of a symlink only the link. Does nothing if it does not exist."""
        self.check_fence()
        path = self.path(rel)
        if not self.is_local:
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def sync(self, *folders: str) -> None:
        """Calls fsync on folders of a local root, so that the file names in them are durable."""
        for folder in folders:
            if self.is_local and os.path.isdir(self.path(folder)):
                fsync(self.path(folder))

    def sweep(self, rel: str) -> None:
        """Removes `.part` files that a killed run left in a folder. Call it only while nothing else writes there."""
        for name in self.sizes(rel) if self.is_local else ():  # only local stores have any
            if is_part(name):
                self.remove(f"{rel}/{name}" if rel else name)

    def move_in(self, folder: str, rel: str) -> None:
        """Moves a finished local folder to `rel`. Replaces an existing folder; on an object store, only files in both."""
        self.check_fence()
        if not self.is_local:
            self.fs.put(folder.rstrip("/") + "/", self.path(rel) + "/", recursive=True)
            return
        for sub, _, names in os.walk(folder):
            for name in names:
                fsync(os.path.join(sub, name))
        if os.path.exists(self.path(rel)):
            shutil.rmtree(self.path(rel))
        os.makedirs(os.path.dirname(self.path(rel)), exist_ok=True)
        shutil.move(folder, self.path(rel))
        fsync(os.path.dirname(self.path(rel)))


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    """Returns `fs.ls(path)`, by one request: s3fs also lists a missing folder's parent, 100 requests for 100,000 shards."""
    if hasattr(fs, "_lsdir") and "s3" in fs.protocol:
        found: list[dict[str, Any]] = fsspec.asyn.sync(fs.loop, fs._lsdir, path)
        return found
    return list(fs.ls(path, detail=True))


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
