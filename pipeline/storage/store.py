"""Files under one root, through fsspec: atomic writes, listings, JSON.

Local and network file systems: a `.part` unique to the attempt, fsync of file and folder (fsspec does neither), rename.
Object stores (`s3://`, `gs://`, `memory://`): one PUT to the final name, which is atomic there.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
READERS = 32  # requests at once to an object store: each waits for the network, not for the processor
FENCE_S = 1.0  # on an object store what the fence said counts so long: one request for all files of a shard
MATCHING = {"s3", "s3a", "gs", "gcs"}  # with a conditional PUT, which fsspec calls mode="create"
AZURE = {"az", "abfs", "abfss"}
_in_memory = threading.Lock()


def sha256_file(path: str | Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return sha256_of(file)


def sha256_of(file: FileIO) -> str:
    """Of the bytes from where an unbuffered file stands."""
    found = hashlib.sha256(file.read(SMALL_BYTES))  # most files: `file_digest` makes a buffer for each
    while block := file.read(SMALL_BYTES):
        found.update(block)
    return found.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces to vary, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Fence:
    """What a run's writers still need: the lock in file `rel` that names the run."""

    rel: str
    run: str


@dataclass(frozen=True)
class Store:
    """A root folder or URL. Every path below is relative to it. Picklable: workers open their own file system.

    fence: set while a run holds the root's lock, and carried to its workers. They read the lock again before anything
    gets its final name: one that outlived its run overwrites nothing of the next one's.
    """

    url: str
    fence: Fence | None = field(default=None, compare=False)

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
        """Raise LockLost when the run that writes here does not hold the root any more."""
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
        """Options of `cat_file`: s3fs asks for the size first, to read a large file in pieces, unless it may not."""
        given = inspect.signature(self.fs._cat_file).parameters if hasattr(self.fs, "_cat_file") else {}
        return {"max_concurrency": 1} if "s3" in self.fs.protocol and "max_concurrency" in given else {}

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
        """Write a file that must not be there yet; False when it is. Of several who try at once exactly one succeeds.

        Raises VlpipeError for a file system that cannot promise that.
        """
        if self.is_local:
            return _create_here(self.path(rel), data)
        if not self._create_there(rel, data):
            with suppress(FileNotFoundError):
                return bool(self.read_bytes(rel) == data)  # ours: its answer was lost, and it was sent again
            return False
        if self._create_there(rel, data + b" "):
            raise VlpipeError(
                f"{self.url}: this store ignores `write only what is not there` (If-None-Match), "
                "so nothing keeps two runs apart in it; use another --root"
            )
        return True

    def _create_there(self, rel: str, data: bytes) -> bool:
        protocol = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        try:
            if MATCHING & {*protocol}:
                self.fs.pipe_file(self.path(rel), data, mode="create")
            elif AZURE & {*protocol}:
                self.fs.pipe_file(self.path(rel), data, overwrite=False)
            elif "memory" in protocol:
                with _in_memory:
                    self.fs.pipe_file(self.path(rel), data, mode="create")
            else:
                raise VlpipeError(
                    f"{self.url}: nothing is known that keeps two runs apart on {protocol[0]}://; "
                    "a root lies in a folder, or on s3://, gs:// or az://"
                )
        except OSError:  # FileExistsError; s3fs: EINVAL for a condition that does not hold
            if not self.exists(rel):
                raise
            return False
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
                self.check_fence()
                self.fs.put_file(part, final)
            return
        os.makedirs(os.path.dirname(final), exist_ok=True)
        part = f"{final}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield part
            _fsync(part)
            self.check_fence()
            os.replace(part, final)
            if sync_folder:
                _fsync(os.path.dirname(final))
        except BaseException as error:
            Path(part).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (None, part):  # `write` names no file
                error.filename = final
            raise

    def link_or_copy(self, src: str, dst: str) -> None:
        """Make `dst` the same file as `src`; a hard link where the file system has them. Finished files never change."""
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
        """Remove a file or folder, of a link only the link; nothing happens when it is not there."""
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
        """Make the names in these folders durable."""
        for folder in folders:
            if self.is_local and os.path.isdir(self.path(folder)):
                _fsync(self.path(folder))

    def sweep(self, rel: str) -> None:
        """Remove the `.part` files a killed run left in a folder; call it only when nothing else writes there."""
        for name in self.sizes(rel) if self.is_local else ():  # no store but a local one has any
            if is_part(name):
                self.remove(f"{rel}/{name}" if rel else name)

    def move_in(self, folder: str, rel: str) -> None:
        """Move a finished local folder to `rel`, whole."""
        self.check_fence()
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


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    """`ls`; but that of s3fs lists the folder above as well when there is none, 100 requests where 100,000 shards lie."""
    if hasattr(fs, "_lsdir") and "s3" in fs.protocol:
        found: list[dict[str, Any]] = fsspec.asyn.sync(fs.loop, fs._lsdir, path)
        return found
    return list(fs.ls(path, detail=True))


def _create_here(final: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(final), exist_ok=True)
    part = f"{final}.{uuid.uuid4().hex[:8]}.part"
    try:
        Path(part).write_bytes(data)
        _fsync(part)
        os.link(part, final)
    except FileNotFoundError:
        return False  # swept by one who was first
    except FileExistsError:
        return (
            os.path.exists(part) and os.stat(part).st_nlink == 2
        )  # ours: NFS lost the answer and asked again
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return _create_without_link(final, data)  # no hard links here
    finally:
        Path(part).unlink(missing_ok=True)
    return True


def _create_without_link(final: str, data: bytes) -> bool:
    try:
        handle = os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
