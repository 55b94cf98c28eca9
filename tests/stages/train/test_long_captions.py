"""A training run draws other sentences of a long caption each time, the same ones whatever resumes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.stages.train.test_loader import SCHEMA, batches, ids_of
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import text
from vlpipe.stages.train.train import Train

LONG = "a red square. at the top left! a green square? at the bottom right"
FOUR = ["a red square.", "at the top left!", "a green square?", "at the bottom right"]
Make = Callable[..., Train]


def test_sentences_are_drawn_anew_each_time(
    tmp_path: Path, make_rows: Callable[[], list[dict[str, Any]]], recipe_of: Make
) -> None:
    row = make_rows()[0]
    row["texts"] = [text(LONG, "synth")]
    data = dataset(tmp_path, pa.Table.from_pylist([row], SCHEMA))
    vocabulary = tmp_path / "words"
    Tokenizer.train([LONG], vocab_size=100).save(vocabulary)
    streams = {"text": {"use": "sentences:Sentences", "max_length": 12}}
    recipe = recipe_of(streams=streams, batch_size=1, tokenizer=File(path=str(vocabulary)))
    tokenizer = Tokenizer.load(str(vocabulary))
    found = [tokenizer.decode(ids) for batch in batches(recipe, data, 80) for ids in ids_of(batch)]
    drawn = Counter(found)
    assert set(drawn) == set(FOUR)
    assert min(drawn.values()) > 8  # 20 each are expected
    resumed = [tokenizer.decode(ids) for batch in batches(recipe, data, 10, step=30) for ids in ids_of(batch)]
    assert resumed == found[30:40]
