"""Visual Genome's descriptions of regions as captions: one row per image with the phrases of its regions.

Krishna et al. 2017, https://arxiv.org/abs/1602.07332. region_descriptions.json: [{id, regions: [{phrase, image_id, x, y,
width, height}]}]; image_data.json: [{image_id, url, ...}], of whose URLs the last two parts are the place of the file in
the two folders of images, such as VG_100K_2/1.jpg. BLIP's list of the same, vg_caption.json, is read by `lists.coco`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted
from vlpipe.stages.lists.json_values import array_items, id_of


@dataclass(frozen=True, kw_only=True)
class RegionDescriptions(FolderSource):
    """Images with the phrases of their regions, each phrase once. regions: region_descriptions.json, which is read image by
    image; image_data: image_data.json; images: the folder that has VG_100K and VG_100K_2."""

    regions: ListFile
    image_data: ListFile
    source: str = "visual_genome"

    NAME: ClassVar[str] = "lists.published.visual_genome:RegionDescriptions"
    VERSION: ClassVar[int] = FolderSource.VERSION

    def rows(self) -> Iterator[pa.Table]:
        images = read_regions(self.regions.path, read_paths(self.image_data.path))
        yield from captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit)


def read_paths(path: str) -> dict[str, str]:
    """Returns image id -> path of its file. Raises VlpipeError with the position in the file if it is invalid."""
    found: dict[str, str] = {}
    for where, image in _items(path):
        url = wanted(image, "url", str, where)
        parts = url.partition("?")[0].partition("://")[2].split("/")[1:][-2:]
        if len(parts) < 2 or not all(parts):
            raise VlpipeError(f"{where}: wanted a URL that ends in FOLDER/FILE, got {shown(url)}")
        found[id_of(image.get("image_id"))] = "/".join(parts)
    return found


def read_regions(path: str, paths: dict[str, str]) -> Iterator[Captioned]:
    """Yields images in the order of the file; one without regions has no captions."""
    for where, image in _items(path):
        regions = wanted(image, "regions", list, where)
        id_ = id_of(image.get("id"))
        if id_ not in paths:
            raise VlpipeError(f"{where}: the image has id {id_}, which `image_data` does not list")
        phrases = (
            wanted(region, "phrase", str, f"{where}: regions[{n}]").strip()
            for n, region in enumerate(regions)
        )
        yield Captioned(paths[id_], list(dict.fromkeys(phrase for phrase in phrases if phrase)))


def _items(path: str) -> Iterator[tuple[str, Any]]:
    if not Path(path).is_file():
        raise VlpipeError(f"there is no file {path}")
    items = array_items(Path(path))
    if items is None:
        raise VlpipeError(f"{path}: wanted a JSON array of images, as Visual Genome has")
    yield from items
