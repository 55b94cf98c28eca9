"""Cache of content digests of input files, per user. It is used while there is no root to store them in.

Without this cache, each `vlpipe plan` before the first run hashes all lists and weights again (4 s for 3 GB).
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.storage.private_folder import private_folder, write_private

MAX_FILES = 200_000  # max entries, about 40 MB of JSON; least recently used ones are dropped first
RECENT_S = 2.0  # a file written this recently may change again within one clock tick


class DigestCache:
    """Map from (path, size in bytes, mtime in ns) to sha256, stored on disk. A damaged cache is replaced, with a warning."""

    def __init__(self) -> None:
        self._files: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}
        self._path: Path | None = None
        try:
            self._path = private_folder() / "digests.json"
            self._files = _read(self._path)
        except FileNotFoundError:
            return
        except ValueError as error:
            _warn(f"the cache {self._path} is damaged and is rebuilt: {error}")
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            _warn(f"cannot cache the digests of files: {error}")
            self._path = None

    def get(self, path: str, size: int, mtime_ns: int) -> str | None:
        """Returns the digest of an unchanged file; None if the caller must hash it and `put` the result."""
        known = self._files.get(path)
        if known is None or known[:2] != [size, mtime_ns]:
            return None
        self._new.setdefault(path, known)
        return str(known[2])

    def put(self, path: str, size: int, mtime_ns: int, digest: str) -> None:
        """Stores a digest, unless the file was modified within the last `RECENT_S` seconds."""
        if abs(time.time() - mtime_ns / 1e9) >= RECENT_S:
            self._files[path] = self._new[path] = [size, mtime_ns, digest]

    def save(self) -> None:
        """Adds the digests that `get` found and `put` stored to the file on disk, which other processes write too.

        They become its most recently used entries. If the file cannot be written, there is a warning.
        """
        if self._path is None or not self._new:
            return
        try:
            kept = _read(self._path) if self._path.exists() else {}
        except ValueError:  # damaged: __init__ has warned about it
            kept = {}
        if all(kept.get(path) == known for path, known in self._new.items()):
            return
        kept = {path: known for path, known in kept.items() if path not in self._new} | self._new
        try:
            write_private(self._path, json.dumps(dict(list(kept.items())[-MAX_FILES:])).encode())
        except OSError as error:
            _warn(f"cannot cache the digests of files: {error}")


def _read(path: Path) -> dict[str, list[Any]]:
    """Returns the content of the cache file. Raises ValueError if it is not in the form that `save` writes."""
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not (isinstance(found, dict) and all(_is_entry(known) for known in found.values())):
        raise ValueError("wanted a JSON object {path: [size, mtime_ns, sha256]}")
    return found


def _is_entry(known: Any) -> bool:
    if not (isinstance(known, list) and [type(part) for part in known] == [int, int, str]):
        return False
    return len(known[2]) == 64 and set(known[2]) <= set("0123456789abcdef")


def _warn(text: str) -> None:
    warnings.warn(text, VlpipeWarning, stacklevel=3)
