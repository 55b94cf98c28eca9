from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.stages.decontamination.sets import EvalSet, from_files, read_vectors
from vlpipe.stages.decontamination.texts import read_set


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    coco = {
        "images": [],
        "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": "two"}],
    }
    assert read_set(write(tmp_path / "c.json", coco))[0] == [
        ("c.json annotations[0]", "one"),
        ("c.json annotations[1]", "two"),
    ]
    assert read_set(write(tmp_path / "l.json", ["one", "", "two"]))[0] == [
        ("l.json[0]", "one"),
        ("l.json[2]", "two"),
    ]
    assert read_set(write(tmp_path / "t.txt", "one\n\n two\n"))[0] == [
        ("t.txt line 1", "one"),
        ("t.txt line 3", " two"),
    ]
    lines = '{"text": "one"}\n\n{"caption": "two", "id": 3}\n{"file": "x", "captions": ["three", "four"]}\n'
    assert read_set(write(tmp_path / "j.jsonl", lines))[0] == [
        ("j.jsonl line 1", "one"),
        ("j.jsonl line 3", "two"),
        ("j.jsonl line 4", "three"),
        ("j.jsonl line 4", "four"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "a", "wanted a file that ends in .txt, .jsonl or .json"),
        (
            "t.jsonl",
            '{"caption": "a", "text": "b"}',
            "t.jsonl line 1: wanted an object with exactly one of text, caption, captions, sentence, question",
        ),
        ("t.jsonl", '\n{"text": 3}', "t.jsonl line 2: wanted text, got 3"),
        ("t.jsonl", "{", "t.jsonl line 1 is not valid JSON"),
        (
            "t.json",
            '{"a": 1}',
            "t.json: wanted a JSON object with the key 'annotations' and an array as its value",
        ),
        (
            "t.json",
            '{"annotations": [{"caption": "a"}, {"question": "b"}]}',
            "annotations[1]: wanted a JSON object with the key 'caption' and a string as its value",
        ),
    ],
)
def test_what_is_wrong_with_a_text_file(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(VlpipeError) as error:
        read_set(write(tmp_path / name, content))
    assert said in str(error.value)


def vectors(path: Path, rows: list[list[float] | None], kind: pa.DataType) -> str:
    pq.write_table(
        pa.table(
            {
                "id": pa.array([str(n) for n in range(len(rows))], pa.string()),
                "embedding": pa.array(rows, kind),
            }
        ),
        path,
    )
    return str(path)


def test_vectors_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    fixed, free = pa.list_(pa.float32(), 2), pa.list_(pa.float64())
    vectors(tmp_path / "000000.parquet", [[1, 0], [0, 1]], fixed)
    vectors(tmp_path / "000001.parquet", [[0.6, 0.8]], free)
    (tmp_path / "_shards.parquet").write_text("not looked at")
    ids, found = read_vectors(str(tmp_path))
    assert ids == ["0", "1", "0"]
    assert np.array_equal(found, np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32))
    assert read_vectors(str(tmp_path / "000001.parquet"))[1].shape == (1, 2)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 0], [3, 4]], r"1 embedding\(s\) do not have unit norm \(first: 1\)"),
        ([[1, 0], [float("nan"), 1]], r"1 embedding\(s\) do not have unit norm \(first: 1\)"),
        ([[1, 0], None], r"every row needs an embedding, all of the same width"),
        ([[1, 0], [1]], r"every row needs an embedding, all of the same width"),
        ([], "there are no rows in"),
    ],
)
def test_what_is_wrong_with_vectors(tmp_path: Path, rows: list[list[float] | None], said: str) -> None:
    with pytest.raises(VlpipeError, match=said):
        read_vectors(vectors(tmp_path / "v.parquet", rows, pa.list_(pa.float32())))


def test_other_files_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "k.parquet")
    with pytest.raises(
        SchemaError, match=r"embeddings \(.*k\.parquet\) reads column 'id', which its input does not have"
    ):
        read_vectors(str(tmp_path / "k.parquet"))
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts/readme.txt", "no image")
    spec = EvalSet(name="x", images=File(path=str(tmp_path / "texts")))
    with pytest.raises(VlpipeError, match="evaluation set 'x': there is no image that can be decoded below"):
        from_files(spec, pictures=True)
    with pytest.raises(VlpipeError, match=r"`images` must be a folder, but there is no folder "):
        from_files(EvalSet(name="x", images=File(path=str(tmp_path / "none"))), pictures=True)
    with pytest.raises(VlpipeError, match="evaluation set 'x': there is no text in"):
        from_files(EvalSet(name="x", texts=File(path=write(tmp_path / "e.txt", "\n"))), pictures=True)
