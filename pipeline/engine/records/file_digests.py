"""Digests of the files outside the root that stages read, and the check that a worker sees the same ones."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning
from vlpipe.pipeline.files import File
from vlpipe.pipeline.storage.digest_cache import RECENT_S, DigestCache
from vlpipe.pipeline.storage.digests import sha256_json, tree_digest
from vlpipe.pipeline.storage.hf_hub import hub_commit
from vlpipe.pipeline.storage.store import Store, sha256_file

Stamp = tuple[int, int]  # size in bytes, mtime_ns


def tree_mark(stamps: Mapping[str, Stamp]) -> str:
    """Returns a digest over names, sizes and mtimes of a folder's files."""
    return sha256_json("mark", sorted(stamps.items()))


def walk_files(path: str) -> Iterator[tuple[str, str, Stamp]]:
    """Yields (relative path, full path, stamp) of a folder's files, or of the file itself. Folder symlinks are skipped.

    stamp: (size in bytes, mtime in ns).
    """
    here = os.path.realpath(path)
    if not os.path.isdir(here):
        stat = os.stat(here)
        yield "", here, (stat.st_size, stat.st_mtime_ns)
        return
    folders = [(here, "")]
    while folders:
        folder, below = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{below}{entry.name}/"))
                elif entry.is_file():  # excludes broken links and sockets
                    stat = entry.stat()
                    yield below + entry.name, entry.path, (stat.st_size, stat.st_mtime_ns)


def check_unchanged(file: File) -> None:
    """Raises VlpipeError if a file outside the root, as this machine sees it now, is not the one the plan was made with.

    A file without a `mark`, such as an artifact in the root, is not checked.
    """
    if not file.mark:
        return
    text = "every worker must see the file that the plan was made with: put it on a shared disk, at the same path everywhere"
    if not os.path.exists(file.path):
        raise VlpipeError(f"there is no {file.path} on {os.uname().nodename}; {text}")
    found = list(walk_files(file.path))
    if tree_mark({name: stamp for name, _, stamp in found}) == file.mark:
        return
    digest = tree_digest({name: sha256_file(full) for name, full, _ in found})
    if digest != file.digest:
        raise VlpipeError(
            f"{file.path} on {os.uname().nodename} is not what the plan was made with (sha256 {digest[:12]}, in the plan "
            f"{file.digest[:12]}): it was changed since, or it is another file of that name; {text}"
        )


class FileDigests:
    """Content digests of files outside the root, computed once each. Cached in the root by path, size and mtime."""

    REL = "_cache/digests.json"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = _read_cache(store, self.REL)
        self._of_user = DigestCache()
        # path -> (digest, mark). Two steps may have the same folder of images as a parameter; walking it is slow.
        self._looked_up: dict[str, tuple[str, str]] = {}
        self._hub: dict[str, str] = {}
        self._changed = False

    def of(self, path: str) -> str:
        """Returns the sha256 of a file, or the `tree_digest` of a folder."""
        return self._get(path)[0]

    def mark(self, path: str) -> str:
        """Returns the `tree_mark` of the files at `path`: a digest of their names, sizes and mtimes."""
        return self._get(path)[1]

    def of_hub(self, name: str, who: str = "") -> str:
        """Returns `hub:ORG/NAME@COMMIT` for a hub id. Raises VlpipeError if it is not a hub id or its commit is unknown.

        who: prefix of error texts.
        """
        if name not in self._hub:
            remembered = self._known.get(f"hub:{name}", [0, 0, ""])[2]
            commit = hub_commit(name, who, remembered)
            self._changed = self._changed or commit != remembered
            self._known[f"hub:{name}"] = [0, 0, commit]
            self._hub[name] = f"hub:{name.partition('@')[0]}@{commit}"
        return self._hub[name]

    def _get(self, path: str) -> tuple[str, str]:
        if path not in self._looked_up:
            found = list(walk_files(path))
            digest = tree_digest({name: self._file(full, stamp) for name, full, stamp in found})
            self._looked_up[path] = digest, tree_mark({name: stamp for name, _, stamp in found})
        return self._looked_up[path]

    def _file(self, path: str, stamp: Stamp) -> str:
        known = self._known.get(path)
        if known is not None and (known[0], known[1]) == stamp:
            return str(known[2])
        digest = self._of_user.get(path, *stamp) or sha256_file(path)
        self._of_user.put(path, *stamp, digest)
        if (
            abs(time.time() - stamp[1] / 1e9) >= RECENT_S
        ):  # a younger file may change again within one clock tick
            self._known[path] = [*stamp, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Stores the digests in the root, or in the user's cache if there is no root yet: planning never creates one."""
        if not self._store.exists(""):
            self._of_user.save()
        elif self._changed:  # on one line: indented JSON is six times as slow to write
            text = json.dumps(self._known, separators=(",", ":"))
            cache = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "files": text}
            self._store.write_bytes(self.REL, json.dumps(cache).encode())


def _read_cache(store: Store, rel: str) -> dict[str, list[Any]]:
    """Returns the cached digests; empty, with a warning, if the file is damaged."""
    if not store.exists(rel):
        return {}
    try:
        cache = store.read_json(rel)
        if hashlib.sha256(cache["files"].encode()).hexdigest() == cache["sha256"]:
            known: dict[str, list[Any]] = json.loads(cache["files"])
            return known
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # handled like a wrong checksum
    warnings.warn(f"{store.path(rel)} is damaged; input files are hashed again", VlpipeWarning, stacklevel=2)
    return {}
