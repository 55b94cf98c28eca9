"""SugarCrepe, Winoground, POPE and COCO's instances as rows; and what is wrong with such files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.stage import SourceStage
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.coco_objects import CocoObjects
from vlpipe.stages.lists.pope import PopeQuestions
from vlpipe.stages.lists.sugarcrepe import SugarCrepe
from vlpipe.stages.lists.winoground import WinogroundPairs

Make = Callable[..., Any]


def written(path: Path, content: Any) -> Path:
    """A JSON file; JSON lines if `content` is a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    many = "".join(json.dumps(line) + "\n" for line in content) if isinstance(content, list) else None
    path.write_text(json.dumps(content) if many is None else many)
    return path


def listed(path: Path) -> ListFile:
    return ListFile(path=str(path))


def read(stage: SourceStage) -> Any:
    return run_map(stage, pa.concat_tables(stage.rows()))


@pytest.fixture
def images(tmp_path: Path, picture: Callable[..., bytes]) -> File:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        (folder / name).write_bytes(picture(seed=seed))
    for seed in range(2):
        (folder / f"ex_0_img_{seed}.png").write_bytes(picture("PNG", seed=seed))
    return File(path=str(folder))


def crepe(name: str, right: str, wrong: str) -> dict[str, str]:
    return {"filename": name, "caption": right, "negative_caption": wrong}


def test_sugarcrepe_is_a_row_per_image_with_the_pairs_of_all_files(tmp_path: Path, images: File) -> None:
    tests = tmp_path / "tests"
    written(tests / "swap_att.json", {"0": crepe("b.jpg", "a dog ", "a cat"), "1": crepe("a.jpg", "x", "y")})
    written(tests / "add_obj.json", {"0": crepe("b.jpg", "a dog", "a dog and a cat")})
    written(tests / "swap_obj.json", {"7": crepe("none.jpg", "x", "y")})
    out = read(SugarCrepe(tests=listed(tests), images=images))
    assert [(reject.why, reject.kind) for reject in out.rejects] == [("no_file", "fault")]
    found = {row["url"]: row for row in out.table.to_pylist()}
    assert list(found) == ["b.jpg", "a.jpg"]
    assert found["b.jpg"]["choices"] == [
        {"id": "add_obj/0", "kind": "add_obj", "right": "a dog", "wrong": "a dog and a cat"},
        {"id": "swap_att/0", "kind": "swap_att", "right": "a dog", "wrong": "a cat"},
    ]
    assert [text["text"] for text in found["b.jpg"]["texts"]] == ["a dog"]
    one = read(SugarCrepe(tests=listed(tests / "swap_att.json"), images=images)).table
    assert [choice["id"] for row in one["choices"].to_pylist() for choice in row] == [
        "swap_att/0",
        "swap_att/1",
    ]


def question(number: Any, image: str, text: str, label: str) -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": text, "label": label}


def test_pope_is_a_row_per_image_with_its_questions(tmp_path: Path, images: File) -> None:
    folder = tmp_path / "pope"
    written(
        folder / "coco_pope_random.json",
        [
            question(1, "a.jpg", "Is there a dining table in the image?", "yes"),
            question(2, "b.jpg", "Is there an oven in the image?", "no"),
            question(3, "a.jpg", "is there a dog in the image?", "No"),
        ],
    )
    array = [question(1, "a.jpg", "Is there a cup in the image?", "no")]
    (folder / "coco_pope_popular.json").write_text(json.dumps(array, indent=4))
    table = read(PopeQuestions(questions=listed(folder), images=images)).table
    first, second = table.to_pylist()
    assert (first["url"], first["texts"], second["url"]) == ("a.jpg", [], "b.jpg")
    assert [(q["id"], q["kind"], q["object"], q["is_there"]) for q in first["questions"]] == [
        ("coco_pope_popular/1", "coco_pope_popular", "cup", False),
        ("coco_pope_random/1", "coco_pope_random", "dining table", True),
        ("coco_pope_random/3", "coco_pope_random", "dog", False),
    ]
    assert second["questions"][0]["object"] == "oven"
    bare = read(PopeQuestions(questions=listed(folder), images=images, form=None)).table
    assert [q["object"] for q in bare["questions"][0].as_py()] == [None] * 3
    assert PopeQuestions(questions=listed(folder), images=images, form="Is it?").preflight() == [
        "form must have {object} once, got 'Is it?'"
    ]


PAIR = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "x y", "caption_1": "y x"}


def test_winoground_from_json_lines(tmp_path: Path, images: File) -> None:
    lines = [
        {**PAIR, "collapsed_tag": "Object"},
        {**PAIR, "id": 1, "image_0": "a.jpg", "image_1": "z.jpg", "collapsed_tag": "Both"},
    ]
    examples = listed(written(tmp_path / "examples.jsonl", lines))
    out = read(WinogroundPairs(examples=examples, images=images, tag="collapsed_tag"))
    assert [(reject.why, reject.detail[:26]) for reject in out.rejects] == [
        ("no_file", "there is no file 'z.jpg' i")
    ]
    rows = out.table.to_pylist()
    assert [row["url"] for row in rows] == ["ex_0_img_0.png", "ex_0_img_1.png", "a.jpg"]
    assert [row["texts"][0]["text"] for row in rows] == ["x y", "y x", "x y"]
    assert rows[1]["pair"] == {"id": "0", "side": 1, "captions": ["x y", "y x"], "tag": "Object"}
    bare = read(WinogroundPairs(examples=examples, images=images)).table["pair"].to_pylist()
    assert {pair["tag"] for pair in bare} == {None}


def test_winoground_from_parquet_files_with_the_images(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = [[picture("PNG", seed=10 * n + side) for side in range(2)] for n in range(45)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for part, numbers in enumerate((range(40), range(40, 45))):
        table = pa.table(
            {
                "id": pa.array(list(numbers), pa.int32()),
                **{
                    f"image_{side}": pa.array(
                        [{"bytes": pictures[n][side] if n != 41 else None, "path": "x.png"} for n in numbers],
                        kind,
                    )
                    for side in range(2)
                },
                "caption_0": [f"first {n}" for n in numbers],
                "caption_1": [f"{n} first" for n in numbers],
                "tag": pa.array([None for _ in numbers], pa.string()),
            }
        )
        pq.write_table(table, folder / f"test-{part}.parquet", row_group_size=18)
    out = read(WinogroundPairs(images=File(path=str(folder)), tag="tag"))
    assert [(reject.why, reject.detail) for reject in out.rejects] == [
        ("no_file", f"test-1.parquet#1#{side} holds no image") for side in range(2)
    ]
    rows = out.table.to_pylist()
    assert len(rows) == 88
    for row in rows:
        number, side = int(row["pair"]["id"]), row["pair"]["side"]
        assert row["image"] == pictures[number][side]
        assert row["texts"][0]["text"] == (f"{number} first" if side else f"first {number}")


INSTANCES: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 90, "name": "wine glass"}],
    "annotations": [
        {"image_id": 3, "category_id": 90, "bbox": [1, 2, 3.5, 4], "attributes": ["red"]},
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1], "attributes": {"occluded": False}},
    ],
}


def test_objects_with_and_without_captions(tmp_path: Path, images: File) -> None:
    instances = (listed(written(tmp_path / "instances.json", INSTANCES)),)
    rows = read(CocoObjects(instances=instances, images=images)).table.to_pylist()
    assert [(row["url"], row["texts"]) for row in rows] == [("b.jpg", []), ("a.jpg", [])]
    assert rows[0]["objects"] == []
    assert rows[1]["objects"] == [
        {"box": [1, 2, 4.5, 6], "label": "wine glass", "attributes": ["red"]},
        {"box": [0, 0, 1, 1], "label": "dog", "attributes": []},
    ]
    split = {"filename": "a.jpg", "filepath": "val", "sentences": [{"raw": "a dog"}]}
    karpathy = {"images": [{**split, "split": "test"}, {**split, "split": "train"}]}
    captions = listed(written(tmp_path / "karpathy.json", karpathy))
    stage = CocoObjects(instances=instances, captions=captions, split=("test",), images=images)
    (row,) = pa.concat_tables(stage.rows()).to_pylist()
    assert (row["url"], row["texts"][0]["text"]) == ("val/a.jpg", "a dog")
    assert [one["label"] for one in row["objects"]] == ["wine glass", "dog"]
    assert CocoObjects(instances=instances, split=("test",), images=images).preflight() == [
        "split is of `captions`, which is not given"
    ]
    assert CocoObjects(instances=(), images=images).preflight() == [
        "instances: wanted at least one file, got none"
    ]


def instance(**change: Any) -> dict[str, Any]:
    return {**INSTANCES, "annotations": [{**INSTANCES["annotations"][0], **change}]}


ASK = "Is there a dog in the image?"
WRONG: list[tuple[str, Any, str]] = [
    (
        "crepe",
        {"0": {"filename": "a.jpg", "caption": "x"}},
        "'0': wanted a JSON object with the key 'negative",
    ),
    ("crepe", {"0": crepe("a.jpg", " ", "y")}, "'0': 'caption' is empty"),
    ("crepe", {"0": "a.jpg"}, "'0': wanted a JSON object with the key 'filename'"),
    ("crepe", [], "is not valid JSON"),
    ("crepe", 5, "wanted a JSON object of tests by key"),
    ("pope", [question(1, "a.jpg", ASK, "maybe")], "line 1: `label` must be yes or no, got 'maybe'"),
    ("pope", [question(1, "a.jpg", ASK, "no")] * 2, "line 2: an earlier question has the question_id '1'"),
    ("pope", [question(1, "", ASK, "no")], "line 1: `image` and `text` must not be empty"),
    (
        "pope",
        [question(1, "a.jpg", "Do you see a dog?", "no")],
        "line 1: the text 'Do you see a dog?' does not have the form 'Is there {a} {object} in the image?'",
    ),
    ("pope", [{"image": "a.jpg", "text": ASK, "label": "no"}], "line 1 has no column 'question_id'"),
    ("winoground", [PAIR, PAIR], "line 2: an earlier pair has the id '0'"),
    ("winoground", [{**PAIR, "caption_1": ""}], "line 1: 'caption_1' is empty"),
    ("winoground", [{**PAIR, "caption_1": ["y x"]}], "line 1: wanted text, got"),
    ("winoground", ["x"], "line 1: wanted a JSON object with the keys"),
    ("instances", instance(bbox=[1, 2, 3]), "annotations[0]: bbox must be four numbers"),
    ("instances", instance(bbox=[1, 2, 3, "4"]), "annotations[0]: bbox must be four numbers"),
    ("instances", instance(image_id=8), "annotations[0]: wanted the ids of an entry of `images`"),
    ("instances", instance(category_id=2), "got image_id 3 and category_id 2"),
    (
        "instances",
        {**INSTANCES, "categories": [5]},
        "categories[0]: wanted a JSON object with the key 'name'",
    ),
    ("instances", {**INSTANCES, "images": INSTANCES["images"][:1] * 2}, "images[1]: each image needs an id"),
    ("captions", {"images": [{"id": 1, "file_name": "new.jpg"}], "annotations": []}, "such as 'new.jpg'"),
]


@pytest.mark.parametrize(("kind", "content", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, images: File, kind: str, content: Any, said: str
) -> None:
    ending = "jsonl" if kind in ("pope", "winoground") else "json"
    file = listed(written(tmp_path / f"{kind}.{ending}", content))
    known = (listed(written(tmp_path / "known.json", INSTANCES)),)
    makers: dict[str, Callable[[], SourceStage]] = {
        "crepe": lambda: SugarCrepe(tests=file, images=images),
        "pope": lambda: PopeQuestions(questions=file, images=images),
        "winoground": lambda: WinogroundPairs(examples=file, images=images),
        "instances": lambda: CocoObjects(instances=(file,), images=images),
        "captions": lambda: CocoObjects(instances=known, captions=file, images=images),
    }
    with pytest.raises(VlpipeError) as caught:
        list(makers[kind]().rows())
    assert said in str(caught.value)


def test_folders_without_such_files_and_broken_parquet(tmp_path: Path, images: File) -> None:
    with pytest.raises(VlpipeError, match=r"contains no list: no file name ends in \.json$"):
        list(SugarCrepe(tests=ListFile(path=images.path), images=images).rows())
    with pytest.raises(VlpipeError, match=r"contains no list: no file name ends in \.parquet$"):
        list(WinogroundPairs(images=images).rows())
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(VlpipeError, match=r"test-0\.parquet is not a readable Parquet file"):
        list(WinogroundPairs(images=File(path=str(folder))).rows())
