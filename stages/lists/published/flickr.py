"""Captions in the token files of Flickr8k and Flickr30k: one row per image with all its captions.

Flickr30k: results_20130124.token, Young et al. 2014, https://shannon.cs.illinois.edu/DenotationGraph/; Flickr8k:
Flickr8k.token.txt, Hodosh et al. 2013. A line is FILE#NUMBER, a tab, and a caption. Their splits by Karpathy
(dataset_flickr30k.json) are read by `lists.coco`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows
from vlpipe.stages.lists.list import lines


@dataclass(frozen=True, kw_only=True)
class FlickrTokens(FolderSource):
    """Images with human captions. tokens: the token file; images: the folder of the file names in it."""

    tokens: ListFile
    source: str = "flickr"

    NAME: ClassVar[str] = "lists.published.flickr:FlickrTokens"
    VERSION: ClassVar[int] = FolderSource.VERSION

    def preflight(self) -> list[str]:
        if self.tokens.step is None and os.path.isfile(self.tokens.path):
            next(_lines(self.tokens.path), None)  # raises if the first line is wrong
        return []

    def rows(self) -> Iterator[pa.Table]:
        images = read_tokens(self.tokens.path)
        yield from captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit)


def read_tokens(path: str) -> Iterator[Captioned]:
    """Yields images in the order in which they first occur. Raises VlpipeError with the line number if a line is invalid."""
    captions: dict[str, list[str]] = {}
    for name, caption in _lines(path):
        captions.setdefault(name, []).extend([caption] if caption else [])
    for name, texts in captions.items():
        yield Captioned(name, texts)


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields (file name, stripped caption)."""
    for where, line in lines(path):
        if not line.strip():
            continue
        token, tab, caption = line.partition("\t")
        name, mark, number = token.rpartition("#")
        if not (tab and mark and name and number.isdigit()):
            raise VlpipeError(f"{where}: wanted FILE#NUMBER, a tab and a caption, got {shown(line)}")
        yield name, caption.strip()
