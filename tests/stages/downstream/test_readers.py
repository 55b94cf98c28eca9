"""Readers of the published files of entailment and statements about two images, and the joining of both images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import heavy, heavy_names, reference_columns
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.downstream.entailment import CLASSES, EntailmentPairs
from vlpipe.stages.downstream.joined import Joined
from vlpipe.stages.downstream.labelled import LabelledSentences
from vlpipe.stages.downstream.statements import PART, PairStatements
from vlpipe.stages.lists.text_limit import TextLimit

Lines = list[dict[str, Any]]
VE: Lines = [
    {"gold_label": "entailment", "sentence2": "A dog runs.", "Flickr30K_ID": "12", "pairID": "12.jpg#0r1e"},
    {
        "gold_label": "contradiction",
        "sentence2": "A cat sleeps.",
        "Flickr30K_ID": "7",
        "pairID": "7.jpg#0r1c",
    },
    {"gold_label": "-", "sentence2": "It is big.", "Flickr30K_ID": "12", "pairID": "12.jpg#0r2"},
    {"gold_label": "neutral", "sentence2": " The dog is old.", "Flickr30K_ID": "12", "pairID": "12.jpg#0r1n"},
]
NLVR2: Lines = [
    {"identifier": "dev-850-0-0", "sentence": "Both images show dogs.", "label": "True", "left_url": "a"},
    {"identifier": "dev-850-0-1", "sentence": "One dog sits.", "label": "False", "left_url": "a"},
]


@pytest.fixture
def read(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., pa.Table]:
    def make(cls: type[LabelledSentences], lines: Lines, images: list[str], **more: Any) -> pa.Table:
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in images:
            (tmp_path / "images" / name).write_bytes(picture())
        path = tmp_path / "examples.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        stage: Any = cls(
            examples=ListFile(path=str(path)), images=File(path=str(tmp_path / "images")), **more
        )
        return run_map(stage, pa.concat_tables(stage.rows())).table

    return make


def test_hypotheses_of_an_image_are_one_row(read: Callable[..., pa.Table]) -> None:
    rows = read(EntailmentPairs, VE, ["12.jpg", "7.jpg"]).to_pylist()
    assert [row["url"] for row in rows] == ["12.jpg", "7.jpg"]
    assert [[one["text"] for one in row["texts"]] for row in rows] == [
        ["A dog runs.", "The dog is old."],
        ["A cat sleeps."],
    ]
    labels = [
        [(one["question"], CLASSES[one["label"]], one["score"]) for one in row["answers"]] for row in rows
    ]
    assert labels[0] == [("A dog runs.", "entailment", 1.0), ("The dog is old.", "neutral", 1.0)]
    assert labels[1] == [("A cat sleeps.", "contradiction", 1.0)]


def test_a_statement_is_a_row_for_each_of_its_images(read: Callable[..., pa.Table]) -> None:
    rows = read(PairStatements, NLVR2, ["dev-850-0-img0.png", "dev-850-0-img1.png"]).to_pylist()
    assert [row["url"] for row in rows] == ["dev-850-0-img0.png", "dev-850-0-img1.png"] * 2
    assert len({row["id"] for row in rows}) == 4
    assert [row["part"] for row in rows[2:]] == [{"group": "dev-850-0-1", "number": side} for side in (0, 1)]
    assert [row["answers"][0]["label"] for row in rows] == [1, 1, 0, 0]
    assert {row["answers"][0]["question"] for row in rows} == {"Both images show dogs.", "One dog sits."}


@pytest.mark.parametrize(
    ("cls", "change", "wrong"),
    [
        (EntailmentPairs, {"gold_label": "maybe"}, r"line 1: the label is 'maybe', wanted one of entailment"),
        (EntailmentPairs, {"sentence2": " "}, r"line 1: 'sentence2' is empty"),
        (
            EntailmentPairs,
            {"sentence2": "The dog is old."},
            r"line 4: an earlier line gives 'The dog is old.'",
        ),
        (
            PairStatements,
            {"identifier": "850"},
            r"line 1: wanted an identifier such as dev-850-0-1, got '850'",
        ),
        (PairStatements, {"label": "yes"}, r"line 1: the label is 'yes', wanted one of false, true"),
    ],
)
def test_what_is_wrong_in_a_file(
    read: Callable[..., pa.Table], cls: type[LabelledSentences], change: dict[str, str], wrong: str
) -> None:
    lines = VE if cls is EntailmentPairs else NLVR2
    with pytest.raises(VlpipeError, match=wrong):
        read(cls, [{**lines[0], **change}, *lines[1:]], [])


SCHEMA = pa.schema([("id", pa.string()), ("part", PART), ("width", pa.int32()), heavy("image", pa.binary())])


def table(*rows: tuple[str, str, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": id_, "part": {"group": group, "number": number}, "width": k, "image": id_.encode()}
            for k, (id_, group, number) in enumerate(rows)
        ],
        SCHEMA,
    )


def test_images_of_a_pair_become_one_row_also_across_shards(tmp_path: Path) -> None:
    rows = table(("a0", "a", 0), ("b1", "b", 1), ("c0", "c", 0), ("a1", "a", 1), ("b0", "b", 0))
    stage = Joined(columns=("image", "width"))
    out = run_gather(stage, [dataset(tmp_path / "in", rows, shard_rows=2)], tmp_path / "out")
    assert heavy_names(out.table.schema) == ["image", "second_image"]
    found = {row["parent"]: row for row in out.table.to_pylist()}
    assert set(found) == {"a0", "b0"}
    assert len({row["id"] for row in out.table.to_pylist()} - set(rows["id"].to_pylist())) == 2
    assert reference_columns(stage.schema(SCHEMA)) == ("=second_id",), (
        "a pair is forgotten with its second row"
    )
    assert {
        k: (v["image"], v["second_image"], v["second_id"], v["width"], v["second_width"])
        for k, v in found.items()
    } == {
        "a0": (b"a0", b"a1", "a1", 0, 3),
        "b0": (b"b0", b"b1", "b1", 4, 1),
    }
    assert [(one.id, one.why, one.detail) for one in out.rejects] == [("c0", "no_partner", "c")]


def test_pairs_that_cannot_be_joined(tmp_path: Path) -> None:
    twice = table(("a0", "a", 0), ("b0", "a", 0))
    with pytest.raises(VlpipeError, match="row b0 is image 0 of 'a', and so is row a0"):
        run_gather(Joined(columns=("image",)), [dataset(tmp_path / "in", twice)], tmp_path / "out")
    none = twice.slice(0, 1).set_column(1, SCHEMA.field("part"), pa.nulls(1, PART))
    with pytest.raises(VlpipeError, match=r"row a0 of .* has no `part`"):
        run_gather(Joined(columns=("image",)), [dataset(tmp_path / "n", none)], tmp_path / "no")
    far = table(("a0", "a", 0), ("b0", "b", 0), ("a1", "a", 1), ("b1", "b", 1))
    with pytest.raises(VlpipeError, match=r"1 rows wait for their other one, .* above max_waiting_bytes 1"):
        run_gather(
            Joined(columns=("image",), max_waiting_bytes=1),
            [dataset(tmp_path / "i", far, shard_rows=1)],
            tmp_path / "o",
        )


def test_a_text_that_is_cut_keeps_its_answers(read: Callable[..., pa.Table]) -> None:
    """`answers` name their question by its text, which is the one in `texts`."""
    limit = TextLimit(max_chars=5, longer="cut")
    for row in read(EntailmentPairs, VE, ["12.jpg", "7.jpg"], text_limit=limit).to_pylist():
        assert [one["text"] for one in row["texts"]] == [one["question"] for one in row["answers"]]
        assert all(len(one["text"]) == 5 for one in row["texts"])
