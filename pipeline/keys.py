"""Keys: what a result was made from. No clock, host, port, path or secret is in one.

step key: declared things only (use, VERSION, parameters, digests of outside files, keys of the steps before), so it is known
    before anything ran; it names the step's folder.
shard key: sha256(stage key, key of the input shard). The stage key leaves out what only lists rows, so a longer list keeps
    the shards it shares with the old one, and which step made an artifact: its content digest stands in the receipt.
What was really read (digests of input shards and artifacts) stands in the receipt and must match as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import File, ListFile, Listing, Stage, Weights
from vlpipe.pipeline.store import Store, sha256_file
from vlpipe.pipeline.workflow import Step, files_of, replace_files


def sha256_json(*parts: Any) -> str:
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def tree_digest(files: Mapping[str, str]) -> str:
    """One digest for a folder: its relative paths and their digests. A single file "" is its own digest."""
    return files[""] if set(files) == {""} else sha256_json("tree", sorted(files.items()))


class FileDigests:
    """Content digests of files outside the root, looked up once each; cached under it by path, size and mtime."""

    REL = "_cache/digests.json"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, list[Any]] = store.read_json(self.REL) if store.exists(self.REL) else {}
        self._looked_up: dict[
            str, str
        ] = {}  # a folder of images is a parameter of two steps, and slow to walk
        self._changed = False

    def of(self, path: str) -> str:
        """sha256 of a file, or of a folder's listing; a hub id (which has no files here yet) is itself."""
        if path not in self._looked_up:
            self._looked_up[path] = self._look_up(path)
        return self._looked_up[path]

    def _look_up(self, path: str) -> str:
        here = os.path.realpath(path)
        if os.path.isdir(here):
            return tree_digest(dict(self._tree(here)))
        return self._file(here, os.stat(here)) if os.path.exists(here) else f"hub:{path}"

    def _tree(self, folder: str, below: str = "") -> Iterator[tuple[str, str]]:
        """(path below the folder, digest) of its files; folders that are links are not entered."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._tree(entry.path, f"{below}{entry.name}/")
                elif entry.is_file():  # no broken link, no socket
                    yield below + entry.name, self._file(entry.path, entry.stat())

    def _file(self, path: str, stat: os.stat_result) -> str:
        mark = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(path)
        if known is None or known[:2] != mark:
            known = self._known[path] = [*mark, sha256_file(path)]
            self._changed = True
        return str(known[2])

    def save(self) -> None:
        if self._changed:  # in one line: spaces for the eye are six times as slow to write
            self._store.write_bytes(self.REL, json.dumps(self._known).encode())


def plain(value: Any) -> Any:
    """Parameters as JSON types; a File is its digest (or the key of the step that makes it), never its path."""
    if isinstance(value, File):
        return {"file": value.digest, "path": value.path if value.step else ""}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # a default of 10 and a 10 in the YAML, read as 10.0, are the same value
    return value


def key_params(stage: Stage) -> dict[str, Any]:
    """The parameters that can change rows."""
    return {
        f.name: plain(getattr(stage, f.name))
        for f in dataclasses.fields(stage)  # type: ignore[arg-type]  # every stage is a dataclass
        if f.name not in stage.NOT_IN_KEY
    }


def source_hash(stage: Stage) -> str:
    """Hash of the file the stage's class is written in; a change without a new VERSION is worth a warning."""
    module = sys.modules.get(type(stage).__module__)
    try:
        text = inspect.getsource(module) if module else ""
    except (OSError, TypeError):  # defined in a notebook or a shell: there is no file
        text = ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Keyed:
    """A step with its keys. `files`: (field, digest) of every file parameter, for the reader."""

    step: Step
    step_key: str
    stage_key: str
    files: tuple[tuple[str, str], ...]
    source: str

    @property
    def folder(self) -> str:
        return f"{self.step.name}-{self.step_key[:8]}"


def key_step(step: Step, above: Mapping[str, Keyed], digests: FileDigests) -> Keyed:
    """Keys of a step whose inputs and artifact steps are in `above`."""

    def with_digest(_: str, file: File) -> File:
        if file.step:
            return dataclasses.replace(file, digest=f"step:{above[file.step].step_key}")
        if isinstance(file, Listing):
            return dataclasses.replace(file, digest=sha256_json("listing", file.files()))
        if not os.path.exists(file.path) and not isinstance(file, Weights):
            raise VlpipeError(f"{step.name}: {file.path} does not exist")
        return dataclasses.replace(file, digest=digests.of(file.path))

    stage = replace_files(step.stage, with_digest)
    inner = replace_files(stage, _inner)
    base = [step.use, stage.VERSION, step.torch_threads if stage.TORCH else 0]
    inputs = [above[name].step_key for name in step.inputs]
    return Keyed(
        step=step,
        step_key=sha256_json("step", *base, key_params(stage), inputs, step.shard_rows),
        stage_key=sha256_json("stage", *base, key_params(inner)),
        files=tuple((field, f.digest) for field, f in files_of(stage)),
        source=source_hash(step.stage),
    )


def _inner(_: str, file: File) -> File:
    """A file as it counts for one shard."""
    if isinstance(file, ListFile):
        return dataclasses.replace(file, digest="", path="")
    return dataclasses.replace(file, digest="") if file.step else file
