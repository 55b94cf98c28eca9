"""Creates a file that at most one of several runs may create, for the lock of a root."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store, fsync

MATCHING = {"s3", "s3a", "gs", "gcs"}  # protocols with a conditional PUT, which fsspec calls mode="create"
AZURE = {"az", "abfs", "abfss"}
_in_memory = threading.Lock()


def create(store: Store, rel: str, data: bytes) -> bool:
    """Writes a new file and returns True; False if it exists. Of several concurrent callers exactly one gets True.

    Raises VlpipeError for a file system that cannot guarantee that.
    """
    if store.is_local:
        return _create_here(store.path(rel), data)
    if not _create_there(store, rel, data):
        with suppress(FileNotFoundError):
            return bool(store.read_bytes(rel) == data)  # written by this call, whose first reply was lost
        return False
    if _create_there(store, rel, data + b" "):
        raise VlpipeError(
            f"{store.url}: this store ignores conditional writes (If-None-Match), "
            "so two runs could write to it at once; use another --root"
        )
    return True


def _create_there(store: Store, rel: str, data: bytes) -> bool:
    protocol = store.fs.protocol if isinstance(store.fs.protocol, tuple) else (store.fs.protocol,)
    try:
        if MATCHING & {*protocol}:
            store.fs.pipe_file(store.path(rel), data, mode="create")
        elif AZURE & {*protocol}:
            store.fs.pipe_file(store.path(rel), data, overwrite=False)
        elif "memory" in protocol:
            with _in_memory:
                store.fs.pipe_file(store.path(rel), data, mode="create")
        else:
            raise VlpipeError(
                f"{store.url}: cannot prevent two runs from writing at once on {protocol[0]}://; "
                "a root must be a folder, or on s3://, gs:// or az://"
            )
    except OSError:  # FileExistsError; s3fs: EINVAL if the condition fails
        if not store.exists(rel):
            raise
        return False
    return True


def _create_here(final: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(final), exist_ok=True)
    part = f"{final}.{uuid.uuid4().hex[:8]}.part"
    try:
        Path(part).write_bytes(data)
        fsync(part)
        os.link(part, final)
    except FileNotFoundError:
        return False  # another run was first, and removed the `.part` file
    except FileExistsError:
        # two links: our own call succeeded, but NFS lost the reply and retried
        return os.path.exists(part) and os.stat(part).st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return _create_without_link(final, data)  # no hard links on this file system
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
