"""Human-captioned sets (COCO JSON, JSON lines), from a folder or fetched: one row with all captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError, WorkflowError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.stage import SourceStage
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.fetching.coco_urls import CocoUrls
from vlpipe.stages.fetching.images import FETCHED
from vlpipe.stages.lists.captions import CaptionsJsonl
from vlpipe.stages.lists.coco import CocoCaptions, NocapsCaptions
from vlpipe.stages.lists.folder import IMAGES
from vlpipe.stages.lists.json_values import load_json
from vlpipe.stages.lists.text_limit import TextLimit

COCO: dict[str, Any] = {
    "info": {},
    "images": [
        {"id": 9, "file_name": "b.jpg", "coco_url": "http://coco.test/b.jpg"},
        {"id": 4, "file_name": "a.png", "coco_url": "http://coco.test/a.png"},
        {"id": 5, "file_name": "../x.jpg", "coco_url": "http://coco.test/..%2Fx.jpg"},
        {"id": 6, "file_name": "none.jpg", "coco_url": "http://coco.test/none.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "a first"},
        {"id": 2, "image_id": 9, "caption": "b first"},
        {"id": 3, "image_id": 4, "caption": "a second"},
        {"id": 4, "image_id": 5, "caption": "x"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    (tmp_path / "x.jpg").write_bytes(picture())
    (made / "a.png").write_bytes(picture("PNG", (7, 5)))
    (made / "b.jpg").write_bytes(picture("JPEG", (4, 6)))
    return made


def listed(stage: SourceStage) -> pa.Table:
    return pa.concat_tables(stage.rows())


def annotations(tmp_path: Path, content: Any = COCO) -> ListFile:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    return ListFile(path=str(path))


def texts(table: pa.Table) -> list[list[str]]:
    return [[one["text"] for one in row] for row in table["texts"].to_pylist()]


def test_coco_from_a_folder(tmp_path: Path, folder: Path) -> None:
    stage = CocoCaptions(annotations=annotations(tmp_path), images=File(path=str(folder)))
    rows = listed(stage)
    out = run_map(stage, rows)
    assert out.table.schema.equals(IMAGES)
    assert texts(rows) == [["b first"], ["a first", "a second"], ["x"], []]
    assert {one["source"] for row in rows["texts"].to_pylist() for one in row} == {"human"}
    columns = ("url", "format", "width", "height")
    assert out.table.select(columns).to_pylist() == [
        dict(zip(columns, ("b.jpg", "JPEG", 4, 6), strict=True)),
        dict(zip(columns, ("a.png", "PNG", 7, 5), strict=True)),
    ]
    assert [reject.why for reject in out.rejects] == ["bad_path", "no_file"]
    assert out.table["image"][1].as_py() == (folder / "a.png").read_bytes()


def test_coco_by_url(tmp_path: Path, folder: Path) -> None:
    stage = CocoUrls(annotations=annotations(tmp_path), serve={"coco.test": File(path=str(folder))})
    out = run_map(stage, listed(stage))
    assert out.table.schema.equals(FETCHED)
    assert out.table["url"].to_pylist() == ["http://coco.test/b.jpg", "http://coco.test/a.png"]
    assert texts(out.table) == [["b first"], ["a first", "a second"]]
    assert [reject.why for reject in out.rejects] == ["http_404", "http_404"]


def test_an_absolute_file_name_leads_out(tmp_path: Path, folder: Path) -> None:
    content = {"images": [{"id": 1, "file_name": str(folder / "b.jpg")}], "annotations": []}
    stage = CocoCaptions(annotations=annotations(tmp_path, content), images=File(path=str(folder)))
    assert [reject.why for reject in run_map(stage, listed(stage)).rejects] == ["bad_path"]


def test_a_file_that_is_a_link_out_of_the_folder_is_named(tmp_path: Path, folder: Path) -> None:
    """As git-annex and the cache of huggingface_hub keep files."""
    (folder / "b.jpg").rename(tmp_path / "blob")
    (folder / "b.jpg").symlink_to(tmp_path / "blob")
    content = {"images": [{"id": 1, "file_name": "b.jpg"}], "annotations": []}
    stage = CocoCaptions(annotations=annotations(tmp_path, content), images=File(path=str(folder)))
    (reject,) = run_map(stage, listed(stage)).rejects
    assert (reject.why, reject.detail) == (
        "bad_path",
        "the path 'b.jpg' leads out of the folder given by `images`, by a symbolic link: put the file itself there",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], ": wanted a JSON object with the key 'images' and an array as its value, got []"),
        (
            {"images": [{"id": 1}]},
            ": images[0]: wanted a JSON object with the key 'file_name' and a string as its value, got",
        ),
        (
            {"images": [{"file_name": "a"}]},
            ": images[0]: each image needs an id that no other image has, got None",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]},
            ": images[1]: each image needs an id that no other image has, got 1",
        ),
        ({"images": []}, ": wanted a JSON object with the key 'annotations' and an array as its value, got"),
        (
            {"images": [], "annotations": [{"image_id": 3, "caption": "x"}]},
            ": annotations[0]: image_id is 3, but no entry of `images` has this id",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": 5}]},
            ": annotations[0]: wanted a JSON object with the key 'caption' and a string as its value, got",
        ),
    ],
)
def test_faulty_annotations_are_named(tmp_path: Path, content: Any, said: str) -> None:
    stage = CocoCaptions(annotations=annotations(tmp_path, content), images=File(path=str(tmp_path)))
    with pytest.raises(VlpipeError) as caught:
        listed(stage)
    assert str(caught.value).startswith(f"{tmp_path}/captions.json{said}")


def test_annotations_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "caf\xe9"}')
    stage = CocoCaptions(annotations=ListFile(path=str(tmp_path / "a.json")), images=File(path=str(tmp_path)))
    with pytest.raises(VlpipeError, match=r"a.json is not JSON: it is not text in UTF-8"):
        listed(stage)


def test_annotations_have_a_maximum_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("[]  ")
    monkeypatch.setattr("vlpipe.stages.lists.json_values.MAX_FILE_BYTES", 4)
    assert load_json(tmp_path / "a.json") == []
    (tmp_path / "a.json").write_text("[]   ")
    with pytest.raises(
        VlpipeError, match=r"a\.json has 5 bytes, and .* is loaded whole, up to 4; split it, or write"
    ):
        load_json(tmp_path / "a.json")


def test_json_lines(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"file": "b.jpg", "captions": ["one", "two"]}\n\n{"file": "no.jpg", "captions": []}\n')
    stage = CaptionsJsonl(captions=ListFile(path=str(path)), images=File(path=str(folder)))
    out = run_map(stage, listed(stage))
    assert texts(out.table) == [["one", "two"]]
    assert [reject.why for reject in out.rejects] == ["no_file"]
    path.write_text(
        '\ufeff{"file": "b.jpg", "captions": ["one"]}\n{"file": "b.jpg", "captions": "just one"}\n'
    )
    assert texts(listed(stage)) == [["one"], ["just one"]]
    for line, said in (
        ('{"file": "b.jpg", "captions": {"en": "one"}}', "wanted text, got "),
        ('{"file": "", "captions": []}', "`file` is empty"),
        ('{"file": "b.jpg"}', "has no column 'captions'; there are: file"),
        (
            '{"file": "b.jpg", "captions": ["x"], "captions": []}',
            "has the column 'captions' 2 times; wanted one",
        ),
    ):
        path.write_text(f'{{"file": "b.jpg", "captions": ["one"]}}\n{line}\n')
        with pytest.raises(VlpipeError, match=r"set.jsonl line 2:? ") as caught:
            listed(stage)
        assert said in str(caught.value)


def test_the_images_folder_must_be_there(tmp_path: Path) -> None:
    stage = CocoCaptions(annotations=annotations(tmp_path), images=File(path=str(tmp_path / "none")))
    with (
        pytest.raises(VlpipeError, match=r"`images` must be a folder, but there is no folder .*/none$"),
        stage.open(),
    ):
        pass


def test_flickr8k_is_read_whole(data: Callable[[str], Path]) -> None:
    root = data("flickr8k")
    stage = CaptionsJsonl(captions=ListFile(path=str(root / "dev.jsonl")), images=File(path=str(root)))
    rows = listed(stage)
    out = run_map(stage, rows)
    assert (rows.num_rows, out.table.num_rows, out.rejects) == (1000, 1000, [])
    assert {len(captions) for captions in texts(out.table)} == {5}
    assert set(out.table["width"].to_pylist()) == {160}


KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {"filename": "b.jpg", "filepath": "val", "split": "test", "sentences": [{"raw": "t one"}, {"raw": "t two"}]},
        {"filename": "a.png", "split": "train", "sentences": [{"raw": "A dog.\n"}, {"raw": "a cat"}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "a bird"}]},
    ],
}  # fmt: skip
BLIP_TRAIN = [
    {"image": "b.jpg", "caption": "one", "image_id": "coco_1"},
    {"image": "a.png", "caption": "two", "image_id": "coco_2"},
    {"image": "b.jpg", "caption": "three", "image_id": "coco_1"},
]
BLIP_TEST = [{"image": "b.jpg", "caption": ["one", "three"]}, {"image": "a.png", "caption": ["two"]}]


@pytest.mark.parametrize("content", [BLIP_TRAIN, BLIP_TEST])
def test_blips_own_annotations(tmp_path: Path, folder: Path, content: Any) -> None:
    stage = CocoCaptions(annotations=annotations(tmp_path, content), images=File(path=str(folder)))
    out = run_map(stage, listed(stage))
    assert out.table["url"].to_pylist() == ["b.jpg", "a.png"]
    assert texts(out.table) == [["one", "three"], ["two"]]


def test_karpathys_splits(tmp_path: Path, folder: Path) -> None:
    file, images = annotations(tmp_path, KARPATHY), File(path=str(folder))
    rows = listed(CocoCaptions(annotations=file, images=images, split=("train", "restval")))
    assert rows["url"].to_pylist() == ["a.png", "b.jpg"]
    assert texts(rows) == [["A dog.", "a cat"], ["a bird"]]
    test = listed(CocoCaptions(annotations=file, images=images, split=("test",)))
    assert (test["url"].to_pylist(), texts(test)) == (["val/b.jpg"], [["t one", "t two"]])
    with pytest.raises(VlpipeError, match=r"has the splits test, train, restval; set `split`") as caught:
        listed(CocoCaptions(annotations=file, images=images))
    assert caught.value.settings == (("split", "[train, restval]"),)
    with pytest.raises(VlpipeError, match=r"has no split 'dev'"):
        listed(CocoCaptions(annotations=file, images=images, split=("dev",)))
    with pytest.raises(VlpipeError, match=r"has no splits, only Karpathy's JSON"):
        listed(CocoCaptions(annotations=annotations(tmp_path), images=images, split=("train",)))


@pytest.mark.parametrize("written", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_annotations_in_other_encodings(tmp_path: Path, folder: Path, written: str) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps(COCO).encode(written))
    stage = CocoCaptions(annotations=ListFile(path=str(tmp_path / "a.json")), images=File(path=str(folder)))
    assert texts(listed(stage)) == [["b first"], ["a first", "a second"], ["x"], []]


def test_a_repeated_key_in_annotations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"image": "a.jpg", "caption": "good", "caption": "WRONG"}]')
    stage = CocoCaptions(annotations=ListFile(path=str(tmp_path / "a.json")), images=File(path=str(tmp_path)))
    with pytest.raises(
        VlpipeError, match=r"a.json is not valid JSON: an object has the key 'caption' 2 times"
    ):
        listed(stage)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [{"image": "a.jpg"}],
            r"\[0\]: each entry needs the keys 'image' and 'caption'; this one has the keys \['image'\]",
        ),
        ([{"image": "a.jpg", "caption": {"en": "x"}}], r"\[0\]: wanted text, got"),
        (
            [{"caption": "x", "url": "http://a"}],
            r"\[0\]: wanted a JSON object with the key 'image' and a string as its value, got",
        ),
    ],
)
def test_faulty_blip_annotations_are_named(tmp_path: Path, content: Any, said: str) -> None:
    stage = CocoCaptions(annotations=annotations(tmp_path, content), images=File(path=str(tmp_path)))
    with pytest.raises(VlpipeError, match=said):
        listed(stage)


def test_a_caption_has_a_maximum_length(tmp_path: Path) -> None:
    stage = CocoCaptions(
        annotations=annotations(tmp_path, BLIP_TEST),
        images=File(path=str(tmp_path)),
        text_limit=TextLimit(max_chars=3),
    )
    found = [[(one["text"], one["why"]) for one in row] for row in listed(stage)["texts"].to_pylist()]
    assert found == [[("one", None), ("thr", "too_long")], [("two", None)]]


def test_the_plan_asks_for_a_split(tmp_path: Path, folder: Path) -> None:
    file = annotations(tmp_path, KARPATHY)
    (tmp_path / "w.yaml").write_text(
        f'steps:\n  human: {{use: "lists.coco:CocoCaptions", annotations: {file.path}, images: {folder}}}\n'
    )
    with pytest.raises(WorkflowError, match=r"; use --set 'human.split=\[train, restval\]'$"):
        Workflow.load(str(tmp_path / "w.yaml"))
    stage = Workflow.load(str(tmp_path / "w.yaml"), sets=["human.split=[train, restval]"]).steps[0].stage
    assert isinstance(stage, CocoCaptions)
    assert stage.split == ("train", "restval")


def test_nocaps_has_domains_and_its_test_set_no_captions(tmp_path: Path, folder: Path) -> None:
    images: list[dict[str, Any]] = [
        {"id": 12, "open_images_id": "b", "file_name": "b.jpg", "domain": "near-domain"},
        {"id": 3, "open_images_id": "a", "file_name": "a.png", "domain": "in-domain"},
    ]
    said = [{"image_id": 3, "id": 0, "caption": " A dog. "}, {"image_id": 3, "id": 1, "caption": "dog"}]
    content = {"images": images, "annotations": said}
    stage = NocapsCaptions(annotations=annotations(tmp_path, content), images=File(path=str(folder)))
    found = run_map(stage, listed(stage)).table
    assert found["image_number"].to_pylist() == [12, 3]
    assert found["domain"].to_pylist() == ["near-domain", "in-domain"]
    assert [[one["text"] for one in texts or ()] for texts in found["texts"].to_pylist()] == [
        [],
        ["A dog.", "dog"],
    ]
    hidden = {"images": [{k: v for k, v in one.items() if k != "domain"} for one in images]}
    stage = NocapsCaptions(annotations=annotations(tmp_path, hidden), images=File(path=str(folder)))
    found = run_map(stage, listed(stage)).table
    assert found["domain"].to_pylist() == [None, None]
    assert [texts or [] for texts in found["texts"].to_pylist()] == [[], []]
    images[1]["domain"] = 4
    stage = NocapsCaptions(annotations=annotations(tmp_path, content), images=File(path=str(folder)))
    with pytest.raises(VlpipeError, match=r"images\[1\]: wanted a domain that is a text, got 4"):
        listed(stage)
