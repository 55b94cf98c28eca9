"""JSON of annotations, evaluation sets, HowTo100M's captions and tdmrep.json; each reader reads each input."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from kind import Kind, pieces

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.stages.annotated.msrvtt import MsrVtt
from vlpipe.stages.annotated.tvqa import Tvqa
from vlpipe.stages.annotated.youcook2 import YouCook2
from vlpipe.stages.decontamination.json_sets import published
from vlpipe.stages.howto100m.captions import read_captions as read_howto100m
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.coco_objects import read_instances
from vlpipe.stages.lists.json_values import load_json
from vlpipe.stages.lists.pope import read_questions
from vlpipe.stages.lists.published.flickr import read_tokens
from vlpipe.stages.lists.published.visual_genome import read_paths, read_regions
from vlpipe.stages.lists.sugarcrepe import read_tests
from vlpipe.stages.lists.winoground import read_sides
from vlpipe.stages.web.robots import is_reserved, tdm_rules

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 1, "file_name": "a.jpg", "coco_url": "http://a.test/a.jpg"},
        {"id": "2", "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 7, "image_id": 1, "caption": " a dog \n"},
        {"id": 8, "image_id": 2, "caption": "a cat"},
    ],
}
SENTENCES = [{"raw": "a dog", "tokens": ["a", "dog"], "imgid": 0}]
KARPATHY = {
    "images": [{"filename": "a.jpg", "filepath": "val2014", "split": "train", "sentences": SENTENCES}],
    "dataset": "coco",
}
BLIP = [
    {"image": "a.jpg", "caption": ["a dog", "one dog"]},
    {"image": "b.jpg", "caption": "a cat", "image_id": "b"},
]
VQA = {"questions": [{"question": "is it?", "image_id": 1, "question_id": 3}]}
HOWTO100M = {
    "abc": {"text": ["a", None, "b"], "start": [0, 1.5, 2], "end": [1, 2, 3]},
    "def": {"text": [], "start": [], "end": []},
}
CREPE = {"0": {"filename": "a.jpg", "caption": "a dog", "negative_caption": "a cat"}}
POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}
PAIR = {"id": 0, "image_0": "a", "image_1": "b.jpg", "caption_0": "a b", "caption_1": "b a", "tag": None}
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 1, 2, 3], "attributes": ["red"]}],
}
YOUCOOK2 = {
    "database": {
        "abc": {"subset": "training", "annotations": [{"segment": [1, 2.5], "id": 0, "sentence": "cut"}]}
    }
}
MSRVTT = {
    "videos": [{"video_id": "video0", "split": "train"}],
    "sentences": [{"video_id": "video0", "caption": "a car", "sen_id": 0}],
}
TVQA = {
    "qid": 1,
    "q": "who?",
    "vid_name": "abc",
    "ts": "1.5-2",
    "answer_idx": 0,
    **{f"a{k}": f"{k}" for k in range(5)},
}
TDMREP = [
    {"location": "/a*b$", "tdm-reservation": 1},
    {"location": "*", "tdm-reservation": 0, "tdm-policy": "x"},
]
REGIONS = [
    {"id": 1, "regions": [{"phrase": "a dog", "image_id": 1, "x": 0, "y": 1, "width": 2, "height": 3}]}
]
IMAGES = [{"image_id": 1, "url": "https://a.test/VG_100K/1.jpg"}]
FOLDER = tempfile.TemporaryDirectory(prefix="vlpipe-fuzz-")
FILE = Path(FOLDER.name) / "it.json"
REFUSED = (VlpipeError, RowFault)


def read(data: bytes) -> None:
    FILE.write_bytes(data)

    def evaluation_set(split: list[str] | None) -> None:
        list(published(load_json(FILE), "it.json", split).texts)

    readers: tuple[Callable[[], object], ...] = (
        lambda: list(read_captions(str(FILE), "file_name")),
        lambda: list(read_captions(str(FILE), "file_name", ["train"])),
        lambda: evaluation_set(None),
        lambda: evaluation_set(["train"]),
        lambda: list(read_tests(FILE)),
        lambda: list(read_questions(FILE, "Is there {a} {object} in the image?")),
        lambda: list(read_sides(str(FILE), "tag", in_parquet=False)),
        lambda: list(read_instances(str(FILE))),
        lambda: YouCook2(annotations=File(path=str(FILE))).spans_by_video(),
        lambda: MsrVtt(annotations=File(path=str(FILE))).spans_by_video(),
        lambda: Tvqa(questions=File(path=str(FILE))).spans_by_video(),
        lambda: list(read_regions(str(FILE), {"1": "VG_100K/1.jpg"})),
        lambda: read_paths(str(FILE)),
        lambda: list(read_tokens(str(FILE))),
        lambda: [one.found() for _, one in read_howto100m(FILE) if not isinstance(one, RowFault)],
    )
    for reader in readers:
        with contextlib.suppress(*REFUSED):
            reader()
    is_reserved(tdm_rules(data), "/abc/aab?a=b")


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


KIND = Kind(
    name="json",
    read=read,
    seeds=(
        *map(
            dumped,
            (
                *(COCO, KARPATHY, BLIP, VQA, HOWTO100M, TDMREP, CREPE, POPE, PAIR, INSTANCES),
                *(YOUCOOK2, MSRVTT, REGIONS, IMAGES, TVQA, [TVQA]),
            ),
        ),
        b"a.jpg#0\ta dog\nb.jpg#1\ta cat\n",
        *(
            dumped(COCO).decode().encode("utf-16"),
            b"\xef\xbb\xbf" + dumped(BLIP),
            b'{"abc": {"text": [NaN], "start": [NaN], "end": [1]}}',
        ),
    ),
    pieces=pieces(
        '[¦]¦{¦}¦"a"¦"a",¦"a":¦{"a":¦{"a":1},¦[],¦1,¦-¦1¦e¦null¦null,¦NaN,¦\\¦\\u¦\\ud800¦\\"¦'
        '"¦ ¦{"image":"a","caption":"b"},¦{"image_id":1,"caption":"b"},¦"\xc3\xa9",¦'
        '{"id":1,"file_name":"a"},¦{"raw":"a"},¦'
        '{"filename":"a","split":"train","sentences":[]},¦{"question":"a"},¦*¦a*¦'
        '{"location":"*a","tdm-reservation":1},¦'
        '"abc":{"text":["a"],"start":[0],"end":[1]},¦%41¦true,'
    ),
    frames=(
        *(
            (b"[", b"{}]"),
            (b"{", b'"z":1}'),
            (b"", b""),
            (b'"', b'"'),
            (b'{"images":[', b'],"annotations":[]}'),
            (b'{"images":[],"annotations":[', b"{}]}"),
        ),
        *(
            (b'{"images":[{"filename":"a","split":"train","sentences":[', b'{"raw":"a"}]}]}'),
            (b'{"images":[', b"{}]}"),
            (b'{"questions":[', b"{}]}"),
        ),
        *(
            (b'{"abc":{"text":["a"],"start":[', b'0],"end":[1]}}'),
            (b'[{"location":"', b'","tdm-reservation":1}]'),
            (b'[{"image":"a","caption":[', b'"a"]}]'),
            (b'{"images":[],"categories":[', b'{"name":"a"}],"annotations":[]}'),
        ),
    ),
)
