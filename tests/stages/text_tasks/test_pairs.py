"""Pairs of texts to write: the reader, the made task, and a training step whose model then writes the right texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile, Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS
from vlpipe.stages.demo.tasks.short_texts import ShortTexts
from vlpipe.stages.downstream.generated import GeneratedAnswers
from vlpipe.stages.text_tasks.pairs import PAIRS, WrittenPairs
from vlpipe.stages.train.train import Train


def read(folder: Path, *lines: dict[str, Any]) -> pa.Table:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = WrittenPairs(file=ListFile(path=str(folder / "pairs.jsonl")))
    return run_map(stage, pa.concat_tables(stage.rows())).table


def test_pairs_are_rows_with_one_answer(tmp_path: Path) -> None:
    table = read(tmp_path, {"source": " a violet hoop ", "target": "The purple ring."})
    assert table.schema.equals(PAIRS)
    (row,) = table.to_pylist()
    assert [one["text"] for one in row["texts"]] == ["a violet hoop"]
    assert row["said"] == [{"question": "a violet hoop", "answer": "purple ring", "score": 1.0}]
    with pytest.raises(VlpipeError, match=r"pairs.jsonl line 2: the source or the target is empty"):
        read(tmp_path, {"source": "a", "target": "b"}, {"source": "a", "target": "."})


def test_short_texts_are_what_captions_name(tmp_path: Path) -> None:
    out = run_gather(ShortTexts(num_train=60, num_dev=5), [], tmp_path)
    lines = [json.loads(line) for line in (out.artifacts / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    colours = {words[0]: set(words) for words in COLOUR_WORDS.values()}
    shapes = {words[0]: set(words) for words in SHAPE_WORDS.values()}
    for line in lines:
        colour, shape = line["target"].split()
        words = set(line["source"].split())
        assert words & colours[colour]
        assert words & shapes[shape]
    assert len({line["target"] for line in lines}) > 15


def test_a_training_step_teaches_to_write(tmp_path: Path) -> None:
    words = ("a b c", "b c d", "c d e", "d e a")
    table = read(tmp_path, *({"source": one, "target": one.split()[1]} for one in words))
    tokenizer = Tokenizer.train([*words] * 3, 60)
    tokenizer.save(tmp_path / "tokenizer")
    base = {"use": "unimo:Unimo", "feat_dim": 4, "num_objects": 3, "width": 24, "layers": 1, "heads": 2}
    base |= {"max_text_length": 12, "dropout": 0.0, "init_std": 0.1, "contrast": False}
    train = Train(
        model={"use": "vlpipe.models.downstream.texts:TextWriter", "base": base},
        tokenizer=Weights(path=str(tmp_path / "tokenizer")),
        objectives=["lm:Lm"],  # type: ignore[arg-type]
        batch_size=16,
        steps=60,
        lr=1e-2,
        warmup_steps=2,
        loader_threads=1,
    )
    trained = run_gather(train, [dataset(tmp_path / "rows", table)], tmp_path / "train")
    scores = GeneratedAnswers(model=Weights(path=str(trained.artifacts)), max_answer=3)
    found = run_gather(scores, [dataset(tmp_path / "rows2", table)], tmp_path / "scores").table.to_pylist()
    assert {row["name"]: row["value"] for row in found}["accuracy/true"] == 1
