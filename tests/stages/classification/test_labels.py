"""Labelled images: one folder per class, or classes that captions name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.classification.class_folders import ClassFolders
from vlpipe.stages.classification.labels import WordLabels
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.label import Label
from vlpipe.stages.loading.rows import Row


@pytest.fixture
def images(tmp_path: Path) -> File:
    for name in ("cat/2.png", "cat/1.png", "ant/x.png", "bee/y.png", ".hidden/z.png", "cat/.thumb"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(path, "PNG")
    (tmp_path / "images/readme.txt").write_text("no class")
    return File(path=str(tmp_path / "images"))


def rows_of(stage: ClassFolders) -> pa.Table:
    return run_map(stage, pa.concat_tables(stage.rows())).table


def test_classes_are_folders(images: File) -> None:
    found = rows_of(ClassFolders(images=images)).to_pylist()
    assert [(row["url"], row["label"]) for row in found] == [
        ("ant/x.png", 0),
        ("bee/y.png", 1),
        ("cat/1.png", 2),
        ("cat/2.png", 2),
    ]
    assert [row["texts"][0]["text"] for row in found] == ["ant", "bee", "cat", "cat"]
    assert Image.open(io.BytesIO(found[0]["image"])).size == (8, 8)
    assert len({row["id"] for row in found}) == 4


def test_classes_may_be_listed(images: File) -> None:
    found = rows_of(ClassFolders(images=images, classes=("cat", "dog", "bee", "ant")))
    assert found["label"].to_pylist() == [3, 2, 0, 0]
    with pytest.raises(VlpipeError, match="wanted only folders of `classes`, found 'ant'"):
        list(ClassFolders(images=images, classes=("cat", "bee")).rows())
    assert ClassFolders(images=images, classes=("cat", "cat")).preflight() == [
        "classes: a class is there twice"
    ]


def test_no_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VlpipeError, match="wanted folders of classes"):
        list(ClassFolders(images=File(path=str(tmp_path / "empty"))).rows())
    with pytest.raises(VlpipeError, match="there is no folder"):
        list(ClassFolders(images=File(path=str(tmp_path / "nowhere"))).rows())


def test_classes_are_words_of_captions() -> None:
    told = {
        "one": [text("A Ring, red", "human"), text("a square", "web")],
        "both": [text("a ring", "human"), text("and a square", "human")],
        "none": [text("a ringing circle", "human")],
        "empty": [],
    }
    table = pa.table({"id": list(told), "texts": pa.array(told.values(), TEXTS)})
    stage = WordLabels(words=("square", "ring"))
    out = run_map(stage, table)
    assert dict(zip(*out.table.select(["id", "label"]).to_pydict().values(), strict=True)) == {"one": 1}
    assert out.rejects == [
        Reject("both", "filtered", "several_classes", "square, ring"),
        Reject("none", "filtered", "no_class", ""),
        Reject("empty", "filtered", "no_class", ""),
    ]
    web = run_map(WordLabels(words=("square", "ring"), source="web"), table)
    assert web.table["label"].to_pylist() == [0]
    for words in (("ring",), ("ring", "Ring")):
        (problem,) = WordLabels(words=words).preflight()
        assert problem.startswith("words: wanted at least 2 different classes")


def test_labels_of_rows() -> None:
    maker, rng = Label(num_classes=3), np.random.default_rng(0)

    def made(label: object) -> int:
        return int(maker(Row("a", 0, [], {"label": label}), "", rng)["data"])

    assert [made(label) for label in (0, 2, None)] == [0, 2, IGNORE]
    for wrong in (3, -1, "cat"):
        with pytest.raises(VlpipeError, match=f"row a: label is {wrong!r}, wanted a whole number"):
            made(wrong)
    stream = maker.collate([{"data": np.int64(k)} for k in (1, IGNORE, 2)])
    assert stream.data.tolist() == [1, IGNORE, 2]
    assert stream.mask is None


def test_a_class_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """What a link to a folder leads to is not in the digest of `images`: an edit there would change no key."""
    for name in ("root/cat", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        VlpipeError, match="'dog' is a link to a folder, whose content is not part of the key"
    ):
        list(ClassFolders(images=File(path=str(tmp_path / "root"))).rows())


def test_a_name_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "root/cat").mkdir(parents=True)
    (tmp_path / "root/cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    with pytest.raises(VlpipeError, match=r"the name 'caf.*\.jpg' is not UTF-8; rename it"):
        list(ClassFolders(images=File(path=str(tmp_path / "root"))).rows())
