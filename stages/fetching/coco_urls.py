"""COCO captions with images fetched from `coco_url`: one row per image with all its human captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import ListFile
from vlpipe.stages.fetching.images import Fetching
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.folder import captioned_rows
from vlpipe.stages.lists.text_limit import TextLimit


@dataclass(frozen=True, kw_only=True)
class CocoUrls(Fetching):
    """COCO captions as by `lists.coco:CocoCaptions`, with images fetched from `coco_url` as by `fetching.images`.

    annotations: a file such as captions_train2014.json. text_limit: the maximum length of a caption.
    """

    annotations: ListFile
    source: str = "coco"
    text_limit: TextLimit = field(default_factory=TextLimit)

    NAME: ClassVar[str] = "ingest.coco:CocoUrls"
    VERSION: ClassVar[int] = Fetching.VERSION + 1  # captions have no space or line end at their ends

    def rows(self) -> Iterator[pa.Table]:
        images = read_captions(self.annotations.path, "coco_url")
        yield from captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit)
