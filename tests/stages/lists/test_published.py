"""Every published set of docs/how_to/own_list.md is read by the step that stands there, from a small file of its form."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import SourceStage
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.lists.published.flickr import read_tokens
from vlpipe.stages.lists.published.visual_genome import read_paths, read_regions
from vlpipe.stages.tars.image_parquet import ImageParquet

PAGE = Path(__file__).parents[3] / "docs/how_to/own_list.md"
STEPS = dict(re.findall(r"^\| ([^|]+) \| `(\{.*\})` \|$", PAGE.read_text(), re.M))
URLS = ["http://a.test/1.jpg", "http://a.test/2.jpg"]
ONE = [["a dog"], ["a cat"]]
TWO = [["a dog", "a brown dog"], ["a cat"]]
BLIP_TWO = [(0, "a dog"), (1, "a cat"), (0, "a brown dog")]

Bytes = list[bytes]
Write = Callable[[Path, Bytes], None]
Texts = list[list[str]]


def write_json(name: str, content: Any) -> Write:
    return lambda folder, _: (folder / name).write_text(json.dumps(content)) and None


def write_text(name: str, text: str) -> Write:
    return lambda folder, _: (folder / name).write_text(text) and None


def write_parquet(name: str, columns: dict[str, Any]) -> Write:
    def write(folder: Path, _: Bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / name)

    return write


def write_datacomp(folder: Path, images: Bytes) -> None:
    import hashlib

    digests = [hashlib.sha256(data).hexdigest() for data in images]
    columns = {"uid": ["a", "b"], "url": URLS, "text": ["a dog", "a cat"], "sha256": digests}
    write_parquet("metadata/0.parquet", columns)(folder, images)


def write_tar(folder: Path, images: Bytes, beside: Callable[[int], dict[str, Any]]) -> None:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for n, data in enumerate(images):
            for ending, content in (("jpg", data), ("json", json.dumps(beside(n)).encode())):
                info = tarfile.TarInfo(f"{n:09d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_img2dataset(folder: Path, images: Bytes) -> None:
    keys = ["000000000", "000000001"]
    columns = {
        "url": URLS,
        "caption": ["a dog", "a cat"],
        "key": keys,
        "status": ["success"] * 2,
        "error_message": [None] * 2,
    }
    write_tar(folder / "downloaded", images, lambda n: {"url": URLS[n], "caption": ONE[n][0]})
    pq.write_table(pa.table(columns), folder / "downloaded/00000.parquet")


def write_datasets(folder: Path, images: Bytes) -> None:
    """By `datasets` itself, as it writes Parquet for the Hub; and another split."""
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)], "captions": TWO}
    kinds = datasets.Features(
        {"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))}
    )
    made = datasets.Dataset.from_dict(rows, features=kinds)
    (folder / "a_dataset/data").mkdir(parents=True)
    made.to_parquet(folder / "a_dataset/data/train-00000-of-00001.parquet")
    made.select([0]).to_parquet(folder / "a_dataset/data/test-00000-of-00001.parquet")


def coco(**more: Any) -> dict[str, Any]:
    said = [{"image_id": 7 + n, "caption": text} for n, text in BLIP_TWO]
    return {
        "images": [{"id": 7 + n, "file_name": f"{n + 1}.jpg", "coco_url": URLS[n]} for n in range(2)],
        "annotations": said,
    }


def karpathy(**more: str) -> dict[str, Any]:
    images = [
        {"filename": f"{n + 1}.jpg", "split": "train", "sentences": [{"raw": t} for t in TWO[n]], **more}
        for n in range(2)
    ]
    return {"images": [*images, {"filename": "9.jpg", "split": "test", "sentences": []}]}


def restval() -> dict[str, Any]:
    found = karpathy()
    found["images"][1]["split"] = "restval"
    return found


VG = [
    {
        "id": 1 + n,
        "regions": [
            {"image_id": 1 + n, "phrase": f" {t}", "x": 0, "y": 0, "width": 9, "height": 9}
            for t in (*TWO[n], TWO[n][0])
        ],
    }
    for n in range(2)
]
VG_DATA = [
    {"image_id": 1 + n, "url": f"https://cs.test/people/rak248/VG_100K_2/{1 + n}.jpg", "width": 9}
    for n in range(2)
]


def write_visual_genome(folder: Path, images: Bytes) -> None:
    write_json("region_descriptions.json", VG)(folder, images)
    write_json("image_data.json", VG_DATA)(folder, images)


FILES: dict[str, tuple[Write, Texts]] = {
    "LAION": (
        write_parquet("laion/part-0.parquet", {"SAMPLE_ID": [1, 2], "URL": URLS, "TEXT": ["a dog", "a cat"]}),
        ONE,
    ),
    "DataComp": (write_datacomp, ONE),
    "CC3M": (write_text("Train_GCC-training.tsv", f"a dog\t{URLS[0]}\na cat\t{URLS[1]}\n"), ONE),
    "CC12M": (write_text("cc12m.tsv", f"{URLS[0]}\ta dog\n{URLS[1]}\ta cat\n"), ONE),
    "SBU": (
        write_json(
            "sbu-captions-all.json",
            {"image_urls": URLS, "user_names": ["x", "y"], "captions": ["a dog", "a cat"]},
        ),
        ONE,
    ),
    "BLIP's web lists": (
        write_json(
            "ccs_synthetic_filtered_large.json",
            [{"url": u, "caption": t[0]} for u, t in zip(URLS, ONE, strict=True)],
        ),
        ONE,
    ),
    "several captions per URL": (write_parquet("many.parquet", {"url": URLS, "captions": TWO}), TWO),
    "COCO, by URL": (write_json("captions_train2017.json", coco()), TWO),
    "COCO": (write_json("captions_train2014.json", coco()), TWO),
    "Karpathy's COCO": (write_json("dataset_coco.json", restval()), TWO),
    "BLIP's COCO": (
        write_json(
            "coco_karpathy_train.json",
            [{"image": f"{n + 1}.jpg", "caption": t, "image_id": f"coco_{n}"} for n, t in BLIP_TWO],
        ),
        TWO,
    ),
    "Flickr30k, by Karpathy": (write_json("dataset_flickr30k.json", karpathy()), TWO),
    "Flickr30k": (
        write_text("results_20130124.token", "1.jpg#0\ta dog\n1.jpg#1\ta brown dog\n2.jpg#0\ta cat\n"),
        TWO,
    ),
    "Visual Genome": (write_visual_genome, TWO),
    "Visual Genome, by BLIP": (
        write_json(
            "vg_caption.json", [{"image": f"VG_100K_2/{n + 1}.jpg", "caption": t} for n, t in BLIP_TWO]
        ),
        TWO,
    ),
    "img2dataset": (write_img2dataset, ONE),
    "webdataset": (
        lambda folder, images: write_tar(folder / "tars", images, lambda n: {"caption": TWO[n]}),
        TWO,
    ),
    "Hugging Face, Parquet with images": (write_datasets, TWO),
}


@pytest.fixture
def images(picture: Callable[..., bytes]) -> Bytes:
    return [picture("JPEG", (9, 7), seed=n) for n in range(2)]


def test_every_set_of_the_page_has_a_test() -> None:
    assert set(STEPS) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_set_is_read_by_its_step(
    name: str, tmp_path: Path, images: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_read(STEPS[name], *FILES[name], tmp_path, images, monkeypatch)


def is_read(
    text: str, write: Write, wanted: Texts, tmp_path: Path, images: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes a set's files, reads them by the step, and compares texts and images."""
    write(tmp_path, images)
    for folder in ("coco", "flickr30k", "vg/VG_100K_2", "served"):
        (tmp_path / folder).mkdir(parents=True)
        for n, data in enumerate(images):
            (tmp_path / folder / f"{n + 1}.jpg").write_bytes(data)
    step = yaml.safe_load(text)
    if step["use"].startswith("fetching."):
        step["serve"] = {"a.test": "served"}
    monkeypatch.chdir(tmp_path)
    Path("w.yaml").write_text(yaml.safe_dump({"steps": {"images": step}}))
    stage = Workflow.load("w.yaml").steps[0].stage
    assert isinstance(stage, SourceStage)
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.rejects == []
    assert [[one["text"] for one in row] for row in out.table["texts"].to_pylist()] == wanted
    assert out.table["image"].to_pylist() == images
    if "hash" in step:
        assert out.table["hash_matches"].to_pylist() == [True, True]


def test_sbus_older_form_pasted(tmp_path: Path, images: Bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    step = '{use: "fetching.images:FetchImages", list: s.tsv, columns: [url, text]}'
    pasted = write_text("s.tsv", "".join(f"{u}\t{t[0]}\n" for u, t in zip(URLS, ONE, strict=True)))
    is_read(step, pasted, ONE, tmp_path, images, monkeypatch)


@pytest.mark.parametrize("line", ["1.jpg a dog", "1.jpg\ta dog", "#0\ta dog", "1.jpg#x\ta dog"])
def test_a_line_that_is_no_token_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.token").write_text(f"1.jpg#0\ta cat\n{line}\n")
    with pytest.raises(VlpipeError, match=r"a.token line 2: wanted FILE#NUMBER, a tab and a caption, got "):
        list(read_tokens(str(tmp_path / "a.token")))


@pytest.mark.parametrize(
    ("regions", "data", "said"),
    [
        ({}, VG_DATA, "wanted a JSON array of images"),
        (VG, [{"image_id": 1, "url": "1.jpg"}], "item 1: wanted a URL that ends in FOLDER/FILE, got '1.jpg'"),
        (VG, VG_DATA[:1], "item 2: the image has id 2, which `image_data` does not list"),
        (
            [{"id": 1, "regions": [{"x": 1}]}],
            VG_DATA,
            r"regions\[0\]: wanted a JSON object with the key 'phrase'",
        ),
    ],
)
def test_what_is_wrong_in_visual_genome_is_named(tmp_path: Path, regions: Any, data: Any, said: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(regions))
    (tmp_path / "d.json").write_text(json.dumps(data))
    with pytest.raises(VlpipeError, match=said):
        list(read_regions(str(tmp_path / "r.json"), read_paths(str(tmp_path / "d.json"))))


def parquet(tmp_path: Path, columns: Any, **more: Any) -> ImageParquet:
    (tmp_path / "d").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), tmp_path / "d/train-0.parquet")
    return ImageParquet(folder=File(path=str(tmp_path / "d")), **more)


def test_images_as_bytes_and_rows_without_one(tmp_path: Path, images: Bytes) -> None:
    columns = {"image": [images[0], None, b"<svg/>"], "caption": ["a dog", "b", "c"], "link": ["u", "v", "w"]}
    stage = parquet(tmp_path, columns, url="link")
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.table["url"].to_pylist() == ["u"]
    assert [one.why for one in out.rejects] == ["missing_image", "not_an_image"]
    paths = pa.array(
        [{"bytes": None, "path": "a.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    stage = parquet(tmp_path, {"image": paths, "caption": ["a"]})
    assert [one.why for one in run_map(stage, pa.concat_tables(stage.rows())).rejects] == ["missing_image"]
    assert next(stage.rows())["url"].to_pylist() == ["a.jpg"]
    stage = parquet(tmp_path, {"image": images, "caption": ["a", "b"]})
    assert next(stage.rows())["url"].to_pylist() == ["train-0.parquet/0", "train-0.parquet/1"]


def test_hidden_files_and_urls_that_are_numbers(tmp_path: Path, images: Bytes) -> None:
    """macOS writes ._NAME beside a file on a foreign disk; huggingface_hub keeps a folder .cache."""
    stage = parquet(tmp_path, {"image": images, "caption": ["a", "b"], "number": [0, 1]}, url="number")
    (tmp_path / "d/._train-0.parquet").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "d/.cache").mkdir()
    (tmp_path / "d/.cache/train-0.parquet").write_bytes(b"half of it")
    assert stage.preflight() == []
    assert next(stage.rows())["url"].to_pylist() == ["0", "1"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, images: Bytes) -> None:
    columns = pa.table([images, ["a", "b"], ["c", "d"]], names=["image", "caption", "caption"])
    with pytest.raises(VlpipeError, match="has the column 'caption' 2 times; wanted one"):
        parquet(tmp_path, columns).preflight()


def test_parquet_of_another_form_is_named_before_the_run(tmp_path: Path) -> None:
    for columns, more, said in (
        (
            {"image": ["a"], "caption": ["a"]},
            {},
            r"column 'image' is string; wanted bytes, or structs with `bytes`",
        ),
        ({"img": [b"a"], "caption": ["a"]}, {}, r"has no column 'image'.*; set 'image'"),
        ({"image": [b"a"], "text": ["a"]}, {}, r"has no column 'caption'.*; set 'caption'"),
        ({"image": [{"path": "a"}], "caption": ["a"]}, {}, r"without the field `bytes`"),
        (
            {"image": [b"a"], "caption": ["a"]},
            {"split": "tran"},
            r"has no file tran-\*.parquet; did you mean 'train'",
        ),
    ):
        with pytest.raises(VlpipeError, match=said):
            parquet(tmp_path, columns, **more).preflight()


def test_an_object_of_arrays_is_no_json_lines(tmp_path: Path) -> None:
    from vlpipe.stages.lists.list import read_pairs

    def texts(content: str) -> list[tuple[str, ...]]:
        (tmp_path / "a.json").write_text(content)
        return [pair.texts for pair in read_pairs(str(tmp_path / "a.json"), url="url", text="text")]

    by_columns = {"url": ["u", "v"], "text": ["a", ["b", "c"]]}
    for indent in (None, 1):
        assert texts(json.dumps(by_columns, indent=indent)) == [("a",), ("b", "c")]
    assert texts('{"url": ["u", "v"], "text": [1.5, NaN]}') == [("1.5",), ()]
    assert texts('{"text": ["a", "b"], "url": "u"}') == [("a", "b")]  # one line of JSON lines
    assert texts('{"text": ["a", "b"], "url": "u"}\n{"text": "c", "url": "v"}\n') == [("a", "b"), ("c",)]
    with pytest.raises(VlpipeError, match=r"the arrays 'url' of 2, 'text' of 1 differ in length"):
        texts('{"url": ["u", "v"], "text": ["a"]}')
    with pytest.raises(VlpipeError, match=r"wanted an array of values under 'text', got 'a'"):
        texts('{"url": ["u"],\n"text": "a"}')
