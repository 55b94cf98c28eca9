"""Makes a stage's files readable on its worker: downloads remote ones, compares all with those the plan was made with."""

from __future__ import annotations

import dataclasses
import functools
import os
import uuid
from pathlib import Path, PurePosixPath
from typing import TypeVar

import fsspec

from vlpipe.pipeline.engine.records.file_digests import check_unchanged, walk_files
from vlpipe.pipeline.engine.worker.node_probe import on_this_node
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Listing, replace_files
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.storage.digests import tree_digest
from vlpipe.pipeline.storage.hf_hub import hub_folder
from vlpipe.pipeline.storage.local_copies import make_room, num_bytes, remove
from vlpipe.pipeline.storage.private_folder import private_folder
from vlpipe.pipeline.storage.store import sha256_file

S = TypeVar("S", bound=Stage)


def here(stage: S) -> S:
    """Returns the stage with readable local paths in its file parameters.

    Raises VlpipeError if a file differs from the one the plan was made with.
    """
    return replace_files(stage, lambda _, file: _here(file))


@functools.lru_cache(maxsize=256)  # once per process: a folder may hold a million files
def _here(file: File) -> File:
    if file.digest.startswith("hub:"):
        return dataclasses.replace(file, path=hub_folder(file.digest))
    if "://" in file.path and not isinstance(file, Listing):
        return dataclasses.replace(file, path=str(_downloaded(file)))
    path = on_this_node(file.path) if file.path else ""
    file = file if path == file.path else dataclasses.replace(file, path=path)
    check_unchanged(file)
    return file


def cache_folder() -> Path:
    """Returns the folder of the user's download cache; only its owner can access it."""
    folder = private_folder() / "files"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _downloaded(file: File) -> Path:
    """Returns the local path of a remote file or folder, downloaded and hashed if it is not cached.

    It is an artifact of an earlier step: files outside the root are local. Only complete downloads get a name in the cache.
    Raises VlpipeError if the digest is not that in the step's manifest.
    """
    endings = "".join(PurePosixPath(file.path).suffixes[-2:])  # readers of lists go by the name
    cached = cache_folder() / f"{file.digest}{endings}"
    if cached.exists():
        os.utime(cached)  # mark as recently used
        return cached
    part = cached.with_name(f"{cached.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        fs, path = fsspec.core.url_to_fs(file.path)
        fs.get(path, str(part), recursive=fs.isdir(path))
        digest = tree_digest({name: sha256_file(full) for name, full, _ in walk_files(str(part))})
        if digest != file.digest:
            raise VlpipeError(
                f"{file.path} has sha256 {digest[:12]}, but the manifest of the step that made it says "
                f"{file.digest[:12]}: it was damaged or replaced since; `vlpipe verify` lists all damage and what to do"
            )
        make_room(cached.parent, num_bytes(part))
        os.rename(part, cached)
    except FileExistsError:  # another worker was first; its copy is the same
        pass
    except OSError:
        if not cached.exists():  # renaming onto an existing folder fails: another worker was first
            raise
    finally:
        remove(part)
    return cached
