"""Captioned images listed in JSON lines: {"file": NAME, "captions": [TEXT, ...]}."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows
from vlpipe.stages.lists.list import text_of, texts_of
from vlpipe.stages.lists.readers import read_json_lines

WANTED = {"file": "file", "captions": "captions"}


@dataclass(frozen=True, kw_only=True)
class CaptionsJsonl(FolderSource):
    """Images with human captions. captions: the JSON lines file, with a list of captions per image, or one caption;
    images: the folder that `file` is relative to."""

    captions: ListFile
    source: str = "captions"

    NAME: ClassVar[str] = "ingest.captions:CaptionsJsonl"
    VERSION: ClassVar[int] = FolderSource.VERSION + 1  # empty captions are left out, as in all lists

    def preflight(self) -> list[str]:
        if self.captions.step is None and os.path.isfile(self.captions.path):
            next(read_captions(self.captions.path), None)  # raises if the first line is wrong
        return []

    def rows(self) -> Iterator[pa.Table]:
        images = read_captions(self.captions.path)
        yield from captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit)


def read_captions(path: str) -> Iterator[Captioned]:
    """Yields images in the order of the lines. Raises VlpipeError with the line number if a line is invalid."""
    for where, row in read_json_lines(path, WANTED):
        if isinstance(row, BadLine):
            raise row
        name = text_of(row["file"], where)
        if not name:
            raise VlpipeError(f"{where}: `file` is empty; wanted the name of an image file")
        yield Captioned(name, texts_of(row["captions"], where))
