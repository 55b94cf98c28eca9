"""Copies of shards on this node's disk, for steps with `resources: {local_copies: true}`, and the size of such caches.

A copy is named by the digest of the shard, so that it is never stale, and all workers of a node share it. It pays where a
shard is read several times (each epoch of a training), or in many small requests (rows chosen from an object store).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.private_folder import private_folder
from vlpipe.pipeline.storage.store import Store

# Max size of a cache; least recently used entries are removed first. VLPIPE_CACHE_GB overrides it.
MAX_CACHE_BYTES = 100 << 30
CHUNK = 1 << 20


@dataclass(frozen=True)
class CopyingStore(Store):
    """A store whose shards are read from copies on this node's disk; also by other processes that it is sent to."""

    def local_path(self, rel: str, digest: str = "") -> str:
        return local_copy(self, rel, digest) or super().local_path(rel, digest)


def local_copy(store: Store, rel: str, digest: str) -> str:
    """Returns the path of a copy of this file on this node's disk; empty if the file is on it, or has no known digest.

    digest: sha256 of the file. Raises VlpipeError if the file has another one, FileNotFoundError if it is missing.
    """
    if not digest:
        return ""
    folder = private_folder() / "shards"
    folder.mkdir(exist_ok=True, mode=0o700)
    if store.is_local and os.stat(store.path(rel)).st_dev == os.stat(folder).st_dev:
        return ""
    cached = folder / f"{digest}.parquet"
    if cached.exists():
        os.utime(cached)  # mark as recently used
        return str(cached)
    make_room(folder, store.size(rel))
    part = cached.with_name(f"{cached.name}.{uuid.uuid4().hex[:8]}.part")
    found = hashlib.sha256()
    try:
        with store.open(rel) as source, part.open("wb") as target:
            while chunk := source.read(CHUNK):
                found.update(chunk)
                target.write(chunk)
        if found.hexdigest() != digest:
            raise VlpipeError(
                f"shard {store.path(rel)} has sha256 {found.hexdigest()[:12]}, but its receipt says {digest[:12]}; "
                "`vlpipe verify` lists what is damaged"
            )
        os.replace(part, cached)
    finally:
        part.unlink(missing_ok=True)
    return str(cached)


def make_room(folder: Path, wanted: int) -> None:
    """Removes the least recently used entries until `wanted` more bytes fit within VLPIPE_CACHE_GB, or none is left."""
    bound = int(float(os.environ.get("VLPIPE_CACHE_GB", MAX_CACHE_BYTES / 2**30)) * 2**30)
    entries = sorted((p for p in folder.iterdir() if p.suffix != ".part"), key=lambda p: p.stat().st_mtime)
    sizes = {p: num_bytes(p) for p in entries}
    while entries and sum(sizes[p] for p in entries) + wanted > bound:
        remove(entries.pop(0))


def num_bytes(path: Path) -> int:
    """Returns the size of a file, or of all files of a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
