"""Types of file parameters of a stage: files, lists, folders, weights. `files_of` finds those of a stage.

A step's key (the hash that decides whether its results are reused) contains a digest of their content, not their paths.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import fsspec
from pydantic_core import core_schema

from vlpipe.pipeline.errors import VlpipeError

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class File:
    """An input other than rows: a file or folder (`path`), or part of another step's artifacts (`step`, `path`).

    YAML: `vocab: ./vocab.txt`, or `vocab: {from: tokenizer, path: vocab.txt}`. When a stage runs, `path` is in both cases a
    local absolute path (of a `Listing` possibly a URL). digest: of the content, part of the key; mark: digest of names,
    sizes and mtimes. A worker raises VlpipeError if the content does not match `digest`; it hashes the content only if
    `mark` does not match.
    """

    path: str = ""
    step: str | None = None
    digest: str = ""
    mark: str = ""

    KIND: ClassVar[str] = "a path, or {from: STEP, path: NAME}"

    @classmethod
    def parse(cls, value: Any) -> File:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value:
            return cls(path=os.path.expanduser(value))
        if isinstance(value, Mapping) and "from" in value and set(value) <= {"from", "path"}:
            return cls(path=str(value.get("path", "")), step=str(value["from"]))
        raise ValueError(f"wanted {cls.KIND}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def __get_pydantic_json_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """Returns the JSON Schema with which editors check a file parameter."""
        text = {"type": "string"}
        of_step = {"from": text, "path": text, "first": text}  # and the axes of a matrix, by their names
        step = {"type": "object", "properties": of_step, "required": ["from"]}
        other = {"type": ["string", "number", "boolean"]}
        return {"description": cls.KIND, "anyOf": [text, {**step, "additionalProperties": other}]}


class ListFile(File):
    """A file of rows that only `SourceStage.rows` reads. If rows are appended, all shards of the old list stay valid, except
    a last one with fewer than `shard_rows` rows."""

    __slots__ = ()


class Listing(ListFile):
    """A folder or fsspec URL of files too large to hash, such as videos. The key contains their names and sizes.

    The key does not cover their content, so the rows made from a file must identify it, for example by a sha256. Files are
    not copied to the worker. The artifacts of a step may also be a Listing.
    """

    __slots__ = ()
    KIND: ClassVar[str] = "a folder, a URL, or {from: STEP, path: NAME}"

    def files(self) -> list[tuple[str, int]]:
        """Returns sorted (path below the folder, size in bytes), without hidden files and folders.

        Raises VlpipeError if there is no such folder.
        """
        fs, base = fsspec.core.url_to_fs(self.path)
        if not fs.isdir(base):
            raise VlpipeError(f"there is no folder {self.path}")
        found = fs.find(base, detail=True)
        named = [
            (name[len(base.rstrip("/")) + 1 :], int(about["size"] or 0)) for name, about in found.items()
        ]
        # A file name may hold bytes that are not valid UTF-8.
        plain = [(name.encode("utf-8", "backslashreplace").decode(), size) for name, size in named]
        return sorted((name, size) for name, size in plain if not any(p[:1] == "." for p in name.split("/")))


class Weights(File):
    """A `save_pretrained` folder, a hub id such as `Salesforce/blip-image-captioning-base`, or a step's artifacts.

    A hub id may name a revision, `ORG/NAME@REVISION`; the default is `main`. The plan resolves it to a commit, which is
    part of the key; the stage reads that commit as a folder.
    """

    __slots__ = ()
    KIND: ClassVar[str] = "a folder, a hub id, or {from: STEP, path: NAME}"


def files_of(stage: Any) -> list[tuple[str, File]]:
    """Returns (dotted field path, File) of each file parameter, also inside tuples, lists, mappings and dataclasses."""
    found: list[tuple[str, File]] = []

    def note(path: str, file: File) -> File:
        found.append((path, file))
        return file

    _walk(stage, "", note)
    return found


def replace_files(stage: S, fn: Callable[[str, File], File]) -> S:
    """Returns a copy of the stage with each file parameter replaced by `fn(dotted path, file)`."""
    new: S = _walk(stage, "", fn)
    return new


def _walk(value: Any, path: str, fn: Callable[[str, File], File]) -> Any:
    def inner(key: Any, item: Any) -> Any:
        return _walk(item, f"{path}.{key}" if path else str(key), fn)

    if isinstance(value, File):
        return fn(path, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        old = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        new = {name: inner(name, item) for name, item in old.items()}
        changed = {name: item for name, item in new.items() if item is not old[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        pairs = {key: inner(key, item) for key, item in value.items()}
        return pairs if any(pairs[k] is not value[k] for k in pairs) else value
    if isinstance(value, (list, tuple)):
        items = [inner(i, item) for i, item in enumerate(value)]
        same = all(new is item for new, item in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value
