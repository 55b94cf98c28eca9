"""Captioned images listed in JSON lines: {"file": NAME, "captions": [TEXT, ...]}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted
from vlpipe.stages.lists.list import lines, text_of


@dataclass(frozen=True, kw_only=True)
class CaptionsJsonl(FolderSource):
    """Images with human captions. captions: the JSON lines file; images: the folder that `file` is relative to."""

    captions: ListFile
    source: str = "captions"

    NAME: ClassVar[str] = "ingest.captions:CaptionsJsonl"

    def rows(self) -> Iterator[pa.Table]:
        images = read_captions(self.captions.path)
        yield from captioned_rows(images, source=self.source, text_source="human")


def read_captions(path: str) -> Iterator[Captioned]:
    """Yields images in the order of the lines. Raises VlpipeError with the line number if a line is invalid."""
    for where, line in lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise VlpipeError(f"{where} is not JSON: {error}") from error
        name, captions = wanted(record, "file", str, where), wanted(record, "captions", list, where)
        yield Captioned(name, [text_of(caption, where) for caption in captions])
