"""COCO captions: one row per image with all its human captions, from an image folder (`fetching.coco_urls` fetches them).

https://cocodataset.org/#format-data: `images` (id, file_name, coco_url), `annotations` (image_id, caption).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted


@dataclass(frozen=True, kw_only=True)
class CocoCaptions(FolderSource):
    """COCO captions. annotations: a file such as captions_train2014.json; images: the folder of the `file_name`s."""

    annotations: ListFile
    source: str = "coco"

    NAME: ClassVar[str] = "ingest.coco:CocoCaptions"

    def rows(self) -> Iterator[pa.Table]:
        images = read_captions(self.annotations.path, "file_name")
        yield from captioned_rows(images, source=self.source, text_source="human")


def read_captions(path: str, key: str) -> Iterator[Captioned]:
    """Yields each image with its captions, in file order. key: field with the image's URL or file name.

    Raises VlpipeError with the position in the file if it is invalid.
    """
    content = _load(path)
    captions: dict[str, list[str]] = {}
    for number, image in enumerate(wanted(content, "images", list, path)):
        where = f"{path}: images[{number}]"
        wanted(image, key, str, where)
        if image.get("id") is None or str(image["id"]) in captions:
            raise VlpipeError(f"{where}: its id {image.get('id')!r} is missing or used by another image")
        captions[str(image["id"])] = []
    for number, annotation in enumerate(wanted(content, "annotations", list, path)):
        where = f"{path}: annotations[{number}]"
        caption = wanted(annotation, "caption", str, where)
        if str(annotation.get("image_id")) not in captions:
            raise VlpipeError(f"{where}: there is no image with id {annotation.get('image_id')!r}")
        captions[str(annotation["image_id"])].append(caption)
    for image in content["images"]:
        yield Captioned(image[key], captions[str(image["id"])])


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError as error:
        raise VlpipeError(f"there is no file {path}") from error
    except ValueError as error:
        raise VlpipeError(f"{path} is not JSON in UTF-8: {error}") from error
