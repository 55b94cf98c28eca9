"""Evaluation sets as they are published, with their images in the folders people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.decontamination.decontaminate import Decontaminate
from vlpipe.stages.decontamination.sets import EvalSet, from_files
from vlpipe.stages.dedup import looks as looks_module
from vlpipe.stages.dedup.looks import PictureLooks


def write(path: Path, content: Any) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return File(path=str(path))


def sentence(raw: str) -> dict[str, Any]:
    return {"tokens": raw.split(), "raw": raw, "imgid": 0, "sentid": 0}


def karpathy(**splits: tuple[str, ...]) -> dict[str, Any]:
    """split -> its files; `folder/name` has a filepath, as in dataset_coco.json, else none, as in dataset_flickr8k.json."""
    images = []
    for split, names in splits.items():
        for name in names:
            folder, _, file = name.rpartition("/")
            image = {
                "filename": file,
                "split": split,
                "sentences": [sentence(f"{file} one"), sentence(f"{file} two")],
            }
            images.append(image | ({"filepath": folder} if folder else {}))
    return {"images": images, "dataset": "coco"}


COCO = karpathy(
    train=("train2014/a.jpg",), restval=("val2014/b.jpg",), val=("val2014/c.jpg",), test=("val2014/d.jpg",)
)


def spec(texts: File, images: Path | None = None, split: tuple[str, ...] | None = None) -> EvalSet:
    return EvalSet(name="set", texts=texts, images=images and File(path=str(images)), split=split)


def put(root: Path, *names: str) -> Path:
    """Files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("split", "names"), [(None, "cd"), (("test",), "d"), (("train", "restval"), "ab"), (("val",), "c")]
)
def test_only_what_is_held_out_counts_of_karpathys_splits(
    tmp_path: Path, split: tuple[str, ...] | None, names: str
) -> None:
    images = put(
        tmp_path / "coco", "train2014/a.jpg", *(f"val2014/{n}.jpg" for n in "bcd"), "val2014/other.jpg"
    )
    items = from_files(spec(write(tmp_path / "dataset_coco.json", COCO), images, split), pictures=False)
    assert items.texts is not None
    assert [t for _, t in items.texts] == [f"{n}.jpg {which}" for n in names for which in ("one", "two")]
    assert sorted((items.sha256 or {}).values()) == [
        f"{'train' if n == 'a' else 'val'}2014/{n}.jpg" for n in names
    ]


def test_a_witness_is_named_by_its_place_and_file(tmp_path: Path) -> None:
    items = from_files(spec(write(tmp_path / "dataset_coco.json", COCO), split=("test",)), pictures=False)
    assert items.texts is not None
    assert items.texts[1] == ("dataset_coco.json images[3] (d.jpg) sentences[1]", "d.jpg two")


@pytest.mark.parametrize("where", [".", "val2014", "deep/er/coco/val2014"])
def test_images_are_found_wherever_they_lie_below_the_folder(tmp_path: Path, where: str) -> None:
    images = put(tmp_path / "images", f"{where}/d.jpg", "notes.txt")
    items = from_files(spec(write(tmp_path / "k.json", COCO), images, ("test",)), pictures=False)
    assert list((items.sha256 or {}).values()) == [f"{where}/d.jpg".removeprefix("./")]


def test_flickrs_splits_have_no_filepath(tmp_path: Path) -> None:
    images = put(tmp_path / "images", "1.jpg", "2.jpg")
    content = karpathy(train=("1.jpg",), test=("2.jpg",), val=())
    content["images"].append({"filename": "1.jpg", "split": "val", "sentences": [], "sentids": []})
    items = from_files(spec(write(tmp_path / "dataset_flickr8k.json", content), images), pictures=False)
    assert list((items.sha256 or {}).values()) == ["2.jpg", "1.jpg"]


def vqa(subtype: str, **more: Any) -> dict[str, Any]:
    questions = [
        {"image_id": 42, "question": "What is the man holding?", "question_id": 42000},
        {"image_id": 42, "question": "Is it raining?", "question_id": 42001},
        {"image_id": 7, "question": "How many dogs are there?", "question_id": 7000},
    ]
    return {"info": {}, "data_type": "mscoco", "data_subtype": subtype, "questions": questions, **more}


@pytest.mark.parametrize(
    ("subtype", "file"),
    [("val2014", "COCO_val2014_{:012d}.jpg"), ("test-dev2015", "COCO_test2015_{:012d}.jpg")],
)
def test_vqa_questions_and_the_coco_images_they_are_about(tmp_path: Path, subtype: str, file: str) -> None:
    images = put(tmp_path / "coco", *(f"some/{file.format(n)}" for n in (7, 42, 5)))
    items = from_files(spec(write(tmp_path / "q.json", vqa(subtype)), images), pictures=False)
    assert items.texts is not None
    assert items.texts[0] == ("q.json questions[0] (question 42000)", "What is the man holding?")
    assert [t for _, t in items.texts][1:] == ["Is it raining?", "How many dogs are there?"]
    assert list((items.sha256 or {}).values()) == [f"some/{file.format(n)}" for n in (42, 7)]


def test_a_vqa_set_about_other_images_takes_the_whole_folder(tmp_path: Path) -> None:
    texts = write(tmp_path / "q.json", vqa("val2015", data_type="abstract_v002"))
    items = from_files(spec(texts, put(tmp_path / "images", "x.png", "y.png")), pictures=False)
    assert list((items.sha256 or {}).values()) == ["x.png", "y.png"]


def test_of_cocos_captions_the_named_images_count(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "c.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a red kite in the sky"}],
    }
    texts, images = write(tmp_path / "captions.json", content), put(tmp_path / "images", "c.jpg", "train.jpg")
    assert from_files(spec(texts, images), pictures=False).sha256 is not None
    assert list((from_files(spec(texts, images), pictures=False).sha256 or {}).values()) == ["c.jpg"]
    bare = write(tmp_path / "bare.json", {"annotations": content["annotations"]})
    assert len(from_files(spec(bare, images), pictures=False).sha256 or {}) == 2


@pytest.mark.parametrize(
    ("content", "split", "said"),
    [
        (COCO, ("tets",), "k.json has no split 'tets'; did you mean 'test'"),
        ({"annotations": []}, ("test",), "k.json has no splits: only Karpathy's JSON has"),
        (
            {"images": [{"filename": "a.jpg"}]},
            None,
            "k.json images[0]: wanted a JSON object with the key 'split' and a string as its value",
        ),
        (
            {"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"tokens": []}]}]},
            ("test",),
            "k.json images[0] (a.jpg) sentences[0]: wanted a JSON object with the key 'raw' and a string as its value",
        ),
        (
            {"questions": ["why?"]},
            None,
            "k.json questions[0]: wanted a JSON object with the key 'question' and a string as its value",
        ),
        (
            {"questions": [{"question": 3}]},
            None,
            "k.json questions[0]: wanted a JSON object with the key 'question' and a string as its value",
        ),
        (COCO, None, "2 of 2 images that the set names are not below"),
        (karpathy(test=("x/twin.jpg",), val=()) | {"dataset": "z"}, ("test",), "2 files in"),
        (
            {"annotations": [{"answer": "yes"}]},
            None,
            "annotations[0]: wanted a JSON object with the key 'caption' and a string as its value",
        ),
    ],
)
def test_what_is_wrong_with_a_set(
    tmp_path: Path, content: Any, split: tuple[str, ...] | None, said: str
) -> None:
    images = put(tmp_path / "images", "1/twin.jpg", "2/twin.jpg")
    with pytest.raises(VlpipeError) as error:
        from_files(spec(write(tmp_path / "k.json", content), images, split), pictures=False)
    assert said in str(error.value)


def test_a_split_wants_the_file_that_says_what_is_in_it(tmp_path: Path) -> None:
    bare = EvalSet(name="set", images=File(path=str(tmp_path)), split=("test",))
    said = "sets: 'set' has a `split`, which applies to `texts` only: set `texts`, or remove it"
    assert Decontaminate(sets=(bare,)).preflight() == [said]
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(VlpipeError, match="`split` applies only to Karpathy's JSON"):
        from_files(spec(File(path=str(tmp_path / "t.txt")), split=("test",)), pictures=False)


def real_set(tmp_path: Path, photos: list[Path]) -> tuple[EvalSet, pa.Table]:
    """Photos of Flickr8k as Karpathy's JSON has them: 20 for training, 10 each to validate and test; and web rows, which
    are the first 5 of each, with a caption of the last one."""
    parts = {"train": photos[:20], "val": photos[20:30], "test": photos[30:40]}
    content = karpathy(**{split: tuple(p.name for p in files) for split, files in parts.items()})
    content["images"][-1]["sentences"] = [sentence("Two dogs chase a red ball over the wet grass .")]
    rows = [
        {
            "id": f"{split}{n}",
            "url": f"http://x.test/{split}{n}",
            "texts": [text("photo: two dogs chase a red ball over the wet grass!", "web")],
            "sha256": f"{split}{n}",  # re-encoded somewhere: other bytes
            "image": photo.read_bytes(),
        }
        for split, files in parts.items()
        for n, photo in enumerate(files[:5])
    ]
    texts = write(tmp_path / "dataset_flickr8k.json", content)
    images = File(path=str(photos[0].parent))
    return EvalSet(name="flickr8k", texts=texts, images=images), pa.Table.from_pylist(
        rows, pa.schema([*LISTED, *IMAGE_FIELDS])
    )


def test_photos_of_the_training_split_stay_the_others_go(tmp_path: Path, photos: list[Path]) -> None:
    one, rows = real_set(tmp_path, photos)
    said: list[str] = []
    got = run_gather(
        Decontaminate(sets=(one,)), [dataset(tmp_path, rows)], tmp_path / "step", say=said.append
    )
    gone = {
        r["id"]: r["witness"]
        for r in pq.read_table(got.artifacts / "decisions.parquet").to_pylist()
        if not r["keep"]
    }
    assert gone == {f"val{n}": photos[20 + n].name for n in range(5)} | {
        f"test{n}": photos[30 + n].name for n in range(5)
    }
    results = {r["name"]: r["value"] for r in got.table.to_pylist()}
    assert (results["removed_rows/flickr8k/picture"], results["removed_texts/flickr8k/ngrams"]) == (10, 15)
    (text_witness,) = set(pq.read_table(got.artifacts / "texts.parquet")["witness"].to_pylist())
    assert text_witness == f"dataset_flickr8k.json images[39] ({photos[39].name}) sentences[0]"
    assert said == ["flickr8k: the bytes of 20 images, 20 pictures, 39 texts (38 under 5 words)"]


def test_stored_looks_remove_the_same_and_no_row_is_decoded(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, rows = real_set(tmp_path, photos)
    want = run_gather(Decontaminate(sets=(one,)), [dataset(tmp_path / "1", rows)], tmp_path / "1")
    stored = run_map(PictureLooks(), rows).table.drop_columns(["image"])
    held_out = dataset(tmp_path / "2", stored.slice(5).drop_columns(["texts"]), name="held")
    num_decoded = [0]
    decode = looks_module.decode

    def counted(data: bytes, **options: Any) -> Any:
        num_decoded[0] += 1
        return decode(data, **options)

    monkeypatch.setattr(looks_module, "decode", counted)
    data = dataset(tmp_path / "2", stored, shard_rows=4)
    got = run_gather(Decontaminate(sets=(one,)), [data], tmp_path / "2")
    assert num_decoded == [20], "only the evaluation set's"
    for name in ("decisions", "texts", "matches"):
        ours, theirs = (pq.read_table(g.artifacts / f"{name}.parquet").to_pylist() for g in (got, want))
        assert sorted(ours, key=str) == sorted(theirs, key=str)
    other = dataset(tmp_path / "2", pa.table({"id": ["a"], "looks": [1]}), name="other")
    with pytest.raises(SchemaError, match="reads column 'looks' as struct"):
        run_gather(Decontaminate(), [data, other], tmp_path / "4")
    again = run_gather(Decontaminate(), [data, held_out], tmp_path / "3")
    assert num_decoded == [20]
    assert {r["name"]: r["value"] for r in again.table.to_pylist()}["removed_rows/held"] == 10
