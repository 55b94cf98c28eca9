"""Lists and annotations: columns/, coco/ and LAION's column names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.filter.language import Language
from vlpipe.stages.lists.captions import read_captions as read_captions_jsonl
from vlpipe.stages.lists.coco import read_captions
from vlpipe.stages.lists.list import Pair, read_pairs

Case = Callable[[str], Path]


def pairs(path: Path, reject: bool = False) -> list[Pair]:
    return list(read_pairs(str(path), url="url", text="text", reject_bad_lines=reject))


@pytest.mark.parametrize("name", ["columns/dup.csv", "columns/dup.tsv", "columns/dup.jsonl"])
def test_a_column_that_is_there_twice_is_no_silent_choice(case: Case, name: str) -> None:
    with pytest.raises(VlpipeError, match=r"line 1 has the column 'text' 2 times"):
        pairs(case(name))


def test_of_json_lines_each_line_has_its_fault(case: Case) -> None:
    found = pairs(case("columns/dup.jsonl"), reject=True)
    assert [one.url for one in found] == [""] * 4
    assert all("the column 'text' 2 times" in one.fault for one in found)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("columns/floattext.parquet", [("1.5",), (), ("2",), ("3",)]),
        ("columns/listtext.parquet", [("a", "b"), ("c",), (), ()]),
        ("columns/longfield.csv", [("x" * 140_000,)]),
        ("columns/tail.tsv", [("a",), ("b",)]),
        (
            "columns/oldmac.tsv",
            [("a red boat",), (), ("ein Hund \U0001f415",), ("\u65e5\u672c\u306e\u732b",)],
        ),
    ],
)
def test_texts_of_odd_lists(case: Case, name: str, texts: list[tuple[str, ...]]) -> None:
    found = pairs(case(name))
    assert [one.texts for one in found] == texts
    assert [one.url for one in found] == [f"http://pics.test/{n}.jpg" for n in range(len(texts))]


def test_laions_column_names_are_found(case: Case) -> None:
    found = pairs(case("data/URL_TEXT.parquet"))
    assert found
    assert all(one.url.startswith("http") and one.text for one in found)


def test_english_alt_text_is_called_english(case: Case) -> None:
    """All of these were called other languages by py3langid with its 142 labels; two of them are French and Spanish."""
    lines = case("data/english_called_other.tsv").read_text().splitlines()
    texts = [text(line.split("\t")[2], "web") for line in lines]
    (languages,) = (
        run_map(Language(), pa.table({"id": ["a"], "texts": pa.array([texts], TEXTS)}))
        .table["language"]
        .to_pylist()
    )
    assert len(languages) == 111
    assert languages.count("en") >= 0.95 * 111


@pytest.mark.parametrize(
    ("name", "captions"),
    [
        ("coco/blip_test.json", {"0.jpg": ["a", "b"], "1.jpg": ["c"]}),
        ("coco/blip_train.json", {"0.jpg": ["a", "b"], "1.jpg": ["c"]}),
        ("coco/coco.json", {"0.jpg": ["A dog.", "A dog."], "1.jpg": ["B"]}),
        ("coco/coco_bom.json", {"0.jpg": ["A dog.", "A dog."], "1.jpg": ["B"]}),
    ],
)
def test_forms_of_annotations(case: Case, name: str, captions: dict[str, list[str]]) -> None:
    found = read_captions(str(case(name)), "file_name")
    assert {one.url: list(one.captions) for one in found} == captions


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("coco/coco_dupimg.json", r"images\[2\]: each image needs an id that no other image has, got 1"),
        ("coco/coco_orphan.json", r"annotations\[3\]: image_id is 99, but no entry of `images` has this id"),
    ],
)
def test_annotations_that_contradict_themselves(case: Case, name: str, said: str) -> None:
    with pytest.raises(VlpipeError, match=said):
        list(read_captions(str(case(name)), "file_name"))


def test_captions_in_json_lines(case: Case) -> None:
    found = read_captions_jsonl(str(case("coco/caps.jsonl")))
    assert [(one.url, list(one.captions)) for one in found] == [
        ("0.jpg", ["a", "b"]),
        ("1.jpg", ["just one"]),
    ]
