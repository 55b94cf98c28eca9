"""Images with the objects in them, in COCO's JSON of instances: one row per image.

https://cocodataset.org/#format-data: {images: [{id, file_name}], categories: [{id, name}],
annotations: [{image_id, category_id, bbox: [x, y, width, height]}]}.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted, with_column
from vlpipe.stages.lists.json_values import id_of, load_json

Objects = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CocoObjects(FolderSource):
    """Images with the column `objects`: boxes in pixels (x1, y1, x2, y2), with the category's name as label.

    instances: JSON files (instances_val2014.json); an annotation may have `attributes`, a list of strings. captions: JSON in
    a form that `lists.coco` reads; the rows are then its images, with these texts, else those of `instances`, without texts.
    An image of it is found by its name, else by the last part of its name. split: of Karpathy's JSON. images: the folder of
    the file names. crowds: whether annotations of crowds (`iscrowd`: 1), whose boxes are around many objects, are objects;
    CHAIR counts them.
    """

    instances: tuple[ListFile, ...]
    captions: ListFile | None = None
    split: tuple[str, ...] = ()
    source: str = "coco"
    crowds: bool = False

    NAME: ClassVar[str] = "lists.coco_objects:CocoObjects"
    ADDED: ClassVar[frozenset[str]] = frozenset({"crowds"})
    VERSION: ClassVar[int] = FolderSource.VERSION + 1  # crowds are left out
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("objects", OBJECTS),)

    def preflight(self) -> list[str]:
        if not self.instances:
            return ["instances: wanted at least one file, got none"]
        return ["split is of `captions`, which is not given"] if self.split and self.captions is None else []

    def rows(self) -> Iterator[pa.Table]:
        known: dict[str, Objects] = {}
        for file in self.instances:
            for name, objects in read_instances(file.path, self.crowds):
                known.setdefault(name, []).extend(objects)
        if self.captions is None:
            listed = [Captioned(name, []) for name in known]
        else:
            listed = list(read_captions(self.captions.path, "file_name", self.split))
        names = _matched([name for name, _ in listed], known)
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], (known[name] for name in names))


def _matched(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Returns for each name the one in `known` that is equal, else the one that ends in the same part. Raises VlpipeError
    for names that have none, or several."""
    ending: dict[str, list[str]] = {}
    for one in known:
        ending.setdefault(PurePosixPath(one).name, []).append(one)
    found: list[str] = []
    missing: list[str] = []
    for name in names:
        meant = [name] if name in known else ending.get(PurePosixPath(name).name, [])
        if len(meant) > 1:
            raise VlpipeError(
                f"{shown(name)} of `captions` may be {shown(meant[0])} or {shown(meant[1])} of `instances`; wanted the same "
                "name in both"
            )
        (found if meant else missing).append(meant[0] if meant else name)
    if missing:
        raise VlpipeError(
            f"{len(missing)} images of `captions` are in none of the files of `instances`, such as {shown(missing[0])}"
        )
    return found


def read_instances(path: str, crowds: bool = False) -> Iterator[tuple[str, Objects]]:
    """Yields (file name, objects) of each image. crowds: whether they are objects.

    Raises VlpipeError with the place of what is wrong.
    """
    content = load_json(path)
    labels: dict[str, str] = {}
    for number, one in enumerate(wanted(content, "categories", list, path)):
        where = f"{path}: categories[{number}]"
        label = wanted(one, "name", str, where)
        if labels.setdefault(id_of(one.get("id")), label) != label:
            raise VlpipeError(
                f"{where}: {shown(label)} has the id {one.get('id')}, as {shown(labels[id_of(one.get('id'))])} has"
            )
    names: dict[str, str] = {}
    for number, one in enumerate(wanted(content, "images", list, path)):
        where = f"{path}: images[{number}]"
        name = wanted(one, "file_name", str, where)
        if one.get("id") is None or id_of(one["id"]) in names:
            raise VlpipeError(
                f"{where}: each image needs an id that no other image has, got {one.get('id')!r}"
            )
        names[id_of(one["id"])] = name
    objects: dict[str, Objects] = {key: [] for key in names}
    for number, one in enumerate(wanted(content, "annotations", list, path)):
        where = f"{path}: annotations[{number}]"
        x, y, width, height = _box(one, where)
        image, category = id_of(one.get("image_id")), id_of(one.get("category_id"))
        if image not in objects or category not in labels:
            raise VlpipeError(
                f"{where}: wanted the ids of an entry of `images` and of `categories`, got image_id "
                f"{shown(one.get('image_id'))} and category_id {shown(one.get('category_id'))}"
            )
        if one.get("iscrowd") and not crowds:
            continue
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
    good = len(box) == 4 and all(type(value) in (int, float) and math.isfinite(value) for value in box)
    if not good or min(box[2:]) < 0:
        raise VlpipeError(
            f"{where}: bbox must be four numbers, x, y, width and height, the last two not negative, got {shown(box)}"
        )
    return [float(value) for value in box]


def _attributes(value: Any) -> list[str]:
    """Returns the attributes if they are a list of strings; other tools write other values under this name."""
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
