"""Labelled images in one folder per class, as ImageNet's training images are: one row per image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.stages.classification.labels import LABEL
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows


@dataclass(frozen=True, kw_only=True)
class ClassFolders(FolderSource):
    """Images in the folders CLASS/ below `images`, sorted by class and name. The text of a row is its class.

    Column `label` (int32): the place of the class among `classes`; without it, among the sorted names of the folders, which
    must then be the same for training and evaluation (`probing` checks its inputs). Hidden files are left out. Raises
    VlpipeError if there are no folders, or one that is a link or not in `classes`.
    """

    classes: tuple[str, ...] = ()
    source: str = "class_folders"

    NAME: ClassVar[str] = "classification.class_folders:ClassFolders"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (LABEL,)

    def preflight(self) -> list[str]:
        if len(set(self.classes)) < len(self.classes):
            return ["classes: a class is there twice"]
        return []

    def rows(self) -> Iterator[pa.Table]:
        names = self._names()
        labels = {name: k for k, name in enumerate(self.classes or names)}
        images = (Captioned(f"{name}/{file}", [name]) for name in names for file in self._files(name))
        for table in captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit):
            found = [labels[url.partition("/")[0]] for url in table["url"].to_pylist()]
            yield table.append_column(LABEL, pa.array(found, LABEL.type))

    def _names(self) -> list[str]:
        """Returns the sorted names of the folders of classes."""
        root = self.images.path
        if not os.path.isdir(root):
            raise VlpipeError(f"`images` must be a folder, but there is no folder {root}")
        entries = [e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")]
        if links := sorted(e.name for e in entries if e.is_symlink()):
            raise VlpipeError(
                f"images: {root}: {links[0]!r} is a link to a folder, whose content is not part of the key; put the folder "
                "itself there"
            )
        names = sorted(e.name for e in entries)
        unknown = [name for name in names if self.classes and name not in self.classes]
        if unknown or not names:
            wanted = "folders of classes" if not names else f"only folders of `classes`, found {unknown[0]!r}"
            raise VlpipeError(f"images: {root}: wanted {wanted}")
        return names

    def _files(self, name: str) -> list[str]:
        folder = os.path.join(self.images.path, name)
        names = sorted(e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith("."))
        for one in (name, *names):
            if not one.isascii() and any(
                "\udc80" <= char <= "\udcff" for char in one
            ):  # bytes that are not UTF-8
                raise VlpipeError(f"images: {folder}: the name {shown(one)} is not UTF-8; rename it")
        return names
