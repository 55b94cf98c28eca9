"""Pairs of a right and a wrong text about an image, in the JSON of SugarCrepe: one row per image with all its pairs.

https://github.com/RAIVNLab/sugar-crepe: a file per kind (`swap_att.json`), {KEY: {filename, caption, negative_caption}}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted, with_column
from vlpipe.stages.lists.json_values import load_json
from vlpipe.stages.lists.list import list_files, name_in_rows

CHOICE = pa.struct([(name, pa.string()) for name in ("id", "kind", "right", "wrong")])
CHOICES = pa.list_(CHOICE)  # id: KIND/KEY


@dataclass(frozen=True, kw_only=True)
class SugarCrepe(FolderSource):
    """Images with pairs of texts in the column `choices`; their right texts are also `texts`.

    tests: a JSON file, or a folder with one per kind, whose name without `.json` is the kind. images: the folder of the
    file names in it; COCO's val2017 for the published tests.
    """

    tests: ListFile
    source: str = "sugarcrepe"
    named: str = field(init=False, default="")  # the file, whose name the rows have; in the key

    NAME: ClassVar[str] = "lists.sugarcrepe:SugarCrepe"
    ADDED: ClassVar[frozenset[str]] = frozenset({"named"})
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("choices", CHOICES),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", name_in_rows(self.tests.path))

    def rows(self) -> Iterator[pa.Table]:
        choices: dict[str, list[dict[str, str]]] = {}
        for file in list_files(self.tests.path, (".json",)):
            for name, choice in read_tests(file):
                choices.setdefault(name, []).append(choice)
        listed = (
            Captioned(name, list(dict.fromkeys(choice["right"] for choice in some)))
            for name, some in choices.items()
        )
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], choices.values())


def read_tests(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (file name of the image, CHOICE). Raises VlpipeError with the place of what is wrong."""
    content = load_json(file)
    if not isinstance(content, dict):
        raise VlpipeError(
            f"{file}: wanted a JSON object of tests by key, {{KEY: {{filename, caption, negative_caption}}}}"
        )
    for key, test in content.items():
        where = f"{file}: {key!r}"
        texts = [_text(test, field, where) for field in ("filename", "caption", "negative_caption")]
        name, right, wrong = texts
        yield name, {"id": f"{file.stem}/{key}", "kind": file.stem, "right": right, "wrong": wrong}


def _text(test: Any, field: str, where: str) -> str:
    found: str = wanted(test, field, str, where).strip()
    if not found:
        raise VlpipeError(f"{where}: {field!r} is empty")
    return found
