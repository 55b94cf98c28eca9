"""Boxes of COCO's instances go to the image that they belong to, and what cannot be right is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.coco_objects import CocoObjects, read_instances

TWO = {
    "images": [{"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/1.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0},
        {"image_id": 2, "category_id": 2, "bbox": [1, 1, 5, 0]},
    ],
}


def write(path: Path, content: Any) -> ListFile:
    path.write_text(json.dumps(content))
    return ListFile(path=str(path))


def labels(folder: Path, names: list[str]) -> dict[str, list[str]]:
    captions = write(folder / "captions.json", [{"image": name, "caption": "x"} for name in names])
    stage = CocoObjects(
        instances=(write(folder / "instances.json", TWO),), captions=captions, images=File(path=str(folder))
    )
    (table,) = stage.rows()
    found = zip(table["url"].to_pylist(), table["objects"].to_pylist(), strict=True)
    return {url: [one["label"] for one in objects] for url, objects in found}


def test_images_of_one_name_in_two_folders_keep_their_boxes(tmp_path: Path) -> None:
    assert labels(tmp_path, ["a/1.jpg", "b/1.jpg"]) == {"a/1.jpg": ["cat"], "b/1.jpg": ["dog"]}
    with pytest.raises(VlpipeError, match=r"'train/1\.jpg' of `captions` may be 'a/1\.jpg' or 'b/1\.jpg'"):
        labels(tmp_path, ["train/1.jpg"])
    with pytest.raises(VlpipeError, match=r"1 images of `captions` are in none of .* such as 'a/2\.jpg'"):
        labels(tmp_path, ["a/1.jpg", "a/2.jpg"])


def read(folder: Path, *, crowds: bool = False, **changes: Any) -> dict[str, list[Any]]:
    path = write(folder / "instances.json", {**TWO, **changes}).path
    found = read_instances(path, crowds)
    return {name: [(one["label"], one["box"]) for one in objects] for name, objects in found}


def test_crowds_are_left_out(tmp_path: Path) -> None:
    crowd = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    found = read(tmp_path, annotations=[*TWO["annotations"], crowd])
    assert found == {"a/1.jpg": [("cat", [0, 0, 5, 5])], "b/1.jpg": [("dog", [1, 1, 6, 1])]}
    found = read(tmp_path, crowds=True, annotations=[crowd])
    assert found == {"a/1.jpg": [("cat", [0, 0, 90, 90])], "b/1.jpg": []}


def test_ids_that_pandas_made_floats(tmp_path: Path) -> None:
    floats = [
        {**one, "image_id": float(one["image_id"]), "category_id": float(one["category_id"])}
        for one in TWO["annotations"]
    ]
    assert read(tmp_path, annotations=floats) == read(tmp_path)
    content = {"images": TWO["images"], "annotations": [{"image_id": 2.0, "caption": "a dog"}]}
    found = read_captions(write(tmp_path / "captions.json", content).path, "file_name")
    assert [(one.url, one.captions) for one in found] == [("a/1.jpg", []), ("b/1.jpg", ["a dog"])]


def test_what_cannot_be_right_is_named(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"categories\[1\]: 'dog' has the id 1, as 'cat' has"):
        read(tmp_path, categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])
    with pytest.raises(VlpipeError, match=r"categories\[1\]: 'dog' has the id 1.0, as 'cat' has"):
        read(tmp_path, categories=[{"id": 1.0, "name": "cat"}, {"id": 1.0, "name": "dog"}])
    wrong = [{"image_id": 1, "category_id": 1, "bbox": [5, 5, -5, 5]}]
    with pytest.raises(VlpipeError, match=r"annotations\[0\]: bbox must be .* the last two not negative"):
        read(tmp_path, annotations=wrong)
