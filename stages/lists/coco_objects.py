"""Images with the objects in them, in COCO's JSON of instances: one row per image.

https://cocodataset.org/#format-data: {images: [{id, file_name}], categories: [{id, name}],
annotations: [{image_id, category_id, bbox: [x, y, width, height]}]}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted, with_column
from vlpipe.stages.lists.json_values import load_json

Objects = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CocoObjects(FolderSource):
    """Images with the column `objects`: boxes in pixels (x1, y1, x2, y2), with the category's name as label.

    instances: JSON files (instances_val2014.json); an annotation may have `attributes`, a list of strings. captions: JSON in
    a form that `lists.coco` reads; the rows are then its images, with these texts, else those of `instances`, without texts.
    An image of it is found by the last part of its name. split: of Karpathy's JSON. images: the folder of the file names.
    """

    instances: tuple[ListFile, ...]
    captions: ListFile | None = None
    split: tuple[str, ...] = ()
    source: str = "coco"

    NAME: ClassVar[str] = "lists.coco_objects:CocoObjects"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("objects", OBJECTS),)

    def preflight(self) -> list[str]:
        if not self.instances:
            return ["instances: wanted at least one file, got none"]
        return ["split is of `captions`, which is not given"] if self.split and self.captions is None else []

    def rows(self) -> Iterator[pa.Table]:
        known: dict[str, Objects] = {}
        for file in self.instances:
            for name, objects in read_instances(file.path):
                known.setdefault(name, []).extend(objects)
        if self.captions is None:
            listed = [Captioned(name, []) for name in known]
        else:
            listed = list(read_captions(self.captions.path, "file_name", self.split))
            known = {PurePosixPath(name).name: objects for name, objects in known.items()}
        names = [name if self.captions is None else PurePosixPath(name).name for name, _ in listed]
        if missing := [name for name in names if name not in known]:
            raise VlpipeError(
                f"{len(missing)} images of `captions` are in none of the files of `instances`, such as {shown(missing[0])}"
            )
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], (known[name] for name in names))


def read_instances(path: str) -> Iterator[tuple[str, Objects]]:
    """Yields (file name, objects) of each image. Raises VlpipeError with the place of what is wrong."""
    content = load_json(path)
    labels: dict[str, str] = {}
    for number, one in enumerate(wanted(content, "categories", list, path)):
        labels[str(one.get("id") if isinstance(one, dict) else None)] = wanted(
            one, "name", str, f"{path}: categories[{number}]"
        )
    names: dict[str, str] = {}
    for number, one in enumerate(wanted(content, "images", list, path)):
        where = f"{path}: images[{number}]"
        name = wanted(one, "file_name", str, where)
        if one.get("id") is None or str(one["id"]) in names:
            raise VlpipeError(
                f"{where}: each image needs an id that no other image has, got {one.get('id')!r}"
            )
        names[str(one["id"])] = name
    objects: dict[str, Objects] = {key: [] for key in names}
    for number, one in enumerate(wanted(content, "annotations", list, path)):
        where = f"{path}: annotations[{number}]"
        x, y, width, height = _box(one, where)
        image, category = str(one.get("image_id")), str(one.get("category_id"))
        if image not in objects or category not in labels:
            raise VlpipeError(
                f"{where}: wanted the ids of an entry of `images` and of `categories`, got image_id "
                f"{shown(one.get('image_id'))} and category_id {shown(one.get('category_id'))}"
            )
        objects[image].append(
            {
                "box": [x, y, x + width, y + height],
                "label": labels[category],
                "attributes": _attributes(one.get("attributes")),
            }
        )
    yield from ((names[key], some) for key, some in objects.items())


def _box(annotation: Any, where: str) -> list[float]:
    box = wanted(annotation, "bbox", list, where)
    if len(box) != 4 or not all(type(value) in (int, float) and math.isfinite(value) for value in box):
        raise VlpipeError(f"{where}: bbox must be four numbers, x, y, width and height, got {shown(box)}")
    return [float(value) for value in box]


def _attributes(value: Any) -> list[str]:
    """Returns the attributes if they are a list of strings; other tools write other values under this name."""
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
