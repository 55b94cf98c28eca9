"""Files as parameters of a stage: paths, lists, folders, weights. Their content counts in keys, their paths do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import fsspec
from pydantic_core import core_schema

from vlpipe.pipeline.errors import VlpipeError


@dataclass(frozen=True, slots=True)
class File:
    """Something outside the rows: a file or folder (`path`), or part of another step's artifacts.

    YAML: `vocab: ./vocab.txt`, or `vocab: {from: tokenizer, path: vocab.txt}`. Its content digest goes into the key, its
    path does not. When a stage runs, `step` is resolved and `path` is absolute; a worker refuses a file whose content is not
    `digest` (`mark`: names, sizes and times of its files, which are compared first).
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


class ListFile(File):
    """A file only `SourceStage.rows` reads. A longer list keeps every full shard it shares with the old one."""

    __slots__ = ()


class Listing(ListFile):
    """A folder or fsspec URL of files too large to hash here, such as videos: their names and sizes count in the key.

    What is in a file is said by its row. It is read where it lies; a step's artifact may be one too.
    """

    __slots__ = ()
    KIND: ClassVar[str] = "a folder, a URL, or {from: STEP, path: NAME}"

    def files(self) -> list[tuple[str, int]]:
        """(path below it, size in bytes), sorted; hidden files and folders are not looked at. VlpipeError: no folder."""
        fs, base = fsspec.core.url_to_fs(self.path)
        if not fs.isdir(base):
            raise VlpipeError(f"there is no folder {self.path}")
        found = fs.find(base, detail=True)
        named = [
            (name[len(base.rstrip("/")) + 1 :], int(about["size"] or 0)) for name, about in found.items()
        ]
        # A name may be bytes of any encoding.
        plain = [(name.encode("utf-8", "backslashreplace").decode(), size) for name, size in named]
        return sorted((name, size) for name, size in plain if not any(p[:1] == "." for p in name.split("/")))


class Weights(File):
    """A `save_pretrained` folder, a hub id such as `Salesforce/blip-image-captioning-base`, or a step's artifacts.

    A hub id may name a revision, `ORG/NAME@REVISION`; without one it is `main`. The commit it means when the plan is made
    goes into the key, and that commit is what the stage reads, as a folder.
    """

    __slots__ = ()
    KIND: ClassVar[str] = "a folder, a hub id, or {from: STEP, path: NAME}"
