"""Keys identify what a result was made from. They contain no time, host, port, path or secret.

step key: hash of what is declared (the stage's name and VERSION, parameters, digests of files outside the root, keys of
    upstream steps), so it is known before anything runs. The name of the step's folder contains its first digits.
stage key: like the step key, but without upstream steps, files that only list rows, and which step made an artifact. So
    a longer list keeps the shards it shares with the old one.
shard key: sha256(stage key, key of the input shard).
The record of a shard also has the digests of what was actually read (input shard, artifacts), which must match as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlpipe.pipeline.engine.records.source_hash import Sources
from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning
from vlpipe.pipeline.files import File, ListFile, Listing, Weights
from vlpipe.pipeline.stage import MapStage, Stage
from vlpipe.pipeline.storage.digest_cache import RECENT_S, DigestCache
from vlpipe.pipeline.storage.hf_hub import hub_commit
from vlpipe.pipeline.storage.store import Store, sha256_file
from vlpipe.pipeline.workflow.params import canonical, files_of, replace_files
from vlpipe.pipeline.workflow.step import Step

Stamp = tuple[int, int]  # size in bytes, mtime_ns


def sha256_json(*parts: Any) -> str:
    """Returns the sha256 over the parts as compact JSON with sorted keys, as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # file names may hold any bytes


def tree_digest(files: Mapping[str, str]) -> str:
    """Returns a digest of a folder. files: relative path -> digest. For a single file (path ""), returns its own digest."""
    return files[""] if set(files) == {""} else sha256_json("tree", sorted(files.items()))


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


def key_params(stage: Stage) -> dict[str, Any]:
    """Returns the parameters that can change rows, as JSON. A file is given by its digest, an artifact by its step's key."""
    params: dict[str, Any] = canonical(stage, _file_in_key, leave_out=True)
    return params


def _file_in_key(file: File) -> dict[str, str]:
    return {"file": file.digest, "path": file.path if file.step else ""}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepKeys:
    """A step with its keys.

    identity: from `Stage.identity`; files: (field, digest) of each file parameter; marks: (field, `File.mark`) of those
    outside the root; source: hash of the stage's code.
    """

    step: Step
    identity: tuple[str | int, ...]
    step_key: str
    stage_key: str
    files: tuple[tuple[str, str], ...]
    marks: tuple[tuple[str, str], ...]
    source: str
    folder: str  # relative to the root; only a name: its `_step.json` has the full key


def key_step(step: Step, above: Mapping[str, StepKeys], digests: FileDigests, sources: Sources) -> StepKeys:
    """Returns the keys of a step. above: keys of its input and artifact steps. Raises VlpipeError if a file is missing."""

    def with_digest(_: str, file: File) -> File:
        if file.step:
            return dataclasses.replace(file, digest=f"step:{above[file.step].step_key}")
        if isinstance(file, Listing):
            return dataclasses.replace(file, digest=sha256_json("listing", file.files()))
        if isinstance(file, Weights) and not os.path.exists(file.path):
            return dataclasses.replace(file, digest=digests.of_hub(file.path, f"{step.name}: "))
        if not os.path.exists(file.path):
            raise VlpipeError(f"{step.name}: {file.path} does not exist")
        return dataclasses.replace(file, digest=digests.of(file.path), mark=digests.mark(file.path))

    step = dataclasses.replace(step, stage=replace_files(step.stage, _absolute))
    stage = replace_files(step.stage, with_digest)
    *names, version = stage.identity(step.use)
    identity = (*names, *sources.versions(step.stage), version)
    inputs = [above[name].step_key for name in step.inputs]
    step_key, stage_key = keys_of(stage, identity, inputs, step.torch_threads, step.shard_rows, step.inputs)
    files = files_of(stage)
    return StepKeys(
        step=step,
        identity=identity,
        step_key=step_key,
        stage_key=stage_key,
        files=tuple((field, f.digest) for field, f in files),
        marks=tuple((field, f.mark) for field, f in files if f.mark),
        source=sources.hash(step.stage),
        folder=f"{step.name}-{step_key[:8]}",
    )


def keys_of(
    stage: Stage,
    identity: Sequence[str | int],
    inputs: Sequence[str],
    torch_threads: int,
    shard_rows: int,
    names: Sequence[str],
) -> tuple[str, str]:
    """Returns (step key, stage key) of a stage whose files have digests. inputs, names: step keys and names of the upstream
    steps."""
    base: list[Any] = [*identity, torch_threads if stage.TORCH else 0]
    if read := list(stage.names_in_key(names)):
        base.append(read)
    rows = 0 if isinstance(stage, MapStage) else shard_rows  # shard size of a gather step
    step_key = sha256_json("step", *base, key_params(stage), list(inputs), rows)
    return step_key, sha256_json("stage", *base, key_params(replace_files(stage, _inner)), rows)


def _absolute(_: str, file: File) -> File:
    """Returns the file with an absolute path: a worker may run in another working directory."""
    if file.step or not file.path or not os.path.exists(file.path):
        return file
    return dataclasses.replace(file, path=os.path.abspath(file.path))


def shard_key(stage_key: str, input_key: str) -> str:
    """Returns the key of the shard that a map stage makes from an input shard."""
    return sha256_json("shard", stage_key, input_key)


def _inner(_: str, file: File) -> File:
    """Returns a file as it enters the stage key: empty for a list file, without the step for an artifact."""
    if isinstance(file, ListFile):
        return dataclasses.replace(file, digest="", path="")
    return dataclasses.replace(file, digest="") if file.step else file
