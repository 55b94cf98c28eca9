"""Labelled folders of demo scenes: their classes, and that the two splits differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.scenes import GROUNDS
from vlpipe.stages.demo.tasks.class_folders import DemoClassFolders


def test_the_class_is_what_the_image_shows(tmp_path: Path) -> None:
    stage = DemoClassFolders(attribute="ground", num_train=12, num_test=9)
    folder = run_gather(stage, [], tmp_path).artifacts
    files = {split: sorted((folder / split).glob("*/*.jpg")) for split in ("train", "test")}
    assert {split: len(found) for split, found in files.items()} == {"train": 12, "test": 9}
    for file in [*files["train"], *files["test"]]:
        corner = np.asarray(Image.open(file).convert("RGB"), float)[0, 0]
        nearest = min(GROUNDS, key=lambda name: float(np.abs(corner - GROUNDS[name]).sum()))
        assert nearest == file.parent.name
    assert not {f.read_bytes() for f in files["train"]} & {f.read_bytes() for f in files["test"]}


def test_each_attribute_has_its_classes(tmp_path: Path) -> None:
    made = run_gather(DemoClassFolders(attribute="size", num_train=20, num_test=1), [], tmp_path)
    assert sorted(p.name for p in (made.artifacts / "train").iterdir()) == ["large", "small"]
