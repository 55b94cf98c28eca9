"""Cloze: which words are masked, what counts as found, and what the figures say about a model that needs the video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.cloze import Cloze, _found, in_errors
from vlpipe.stages.loading.makers.text import Text

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the {colour} ring" for colour in COLOURS] * 5, 100)


def test_each_word_is_masked_by_itself(tokenizer: Tokenizer) -> None:
    maker = Text(tokenizer=tokenizer, max_length=12)
    stage = Cloze(model=Weights(path="x"))
    blanks = list(stage._blanks(maker, 3, "the red ring"))
    assert [tokenizer.decode(one.wanted) for one in blanks] == ["the", "red", "ring"]
    for one in blanks:
        assert [i for i, k in enumerate(one.ids) if k == tokenizer.mask] == one.at
    only = Cloze(model=Weights(path="x"), words=["red"])
    assert [tokenizer.decode(one.wanted) for one in only._blanks(maker, 3, "the red ring")] == ["red"]


def test_ties_count_against_the_word() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0]])
    assert _found(logits, [0]) == [True, True]
    assert _found(logits, [4]) == [False, True]
    assert _found(logits, [5]) == [False, False]
    assert _found(torch.zeros(1, 9), [0]) == [False, False]
    assert _found(torch.full((1, 9), torch.nan), [0]) == [False, False]
    assert _found(torch.cat([logits, logits]), [0, 1]) == [False, True]  # every token of a word


def test_gain_is_in_standard_errors() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    error = np.std(values, ddof=1) / 5**0.5
    assert in_errors(values) == pytest.approx(0.6 / error)
    assert in_errors([0.0, 0.0]) == 0.0


class SaysTheCode(torch.nn.Module):
    """Takes the masked word to be the colour with the number of the first code; without a video, the first colour."""

    STREAMS: dict[str, str] = {"text": "text:Text", "video": "codes:Codes"}  # noqa: RUF012

    def __init__(self, *, ids: list[int], vocab_size: int, knows: bool = False) -> None:
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.ids, self.config.vocab_size = ids, vocab_size
        self.knows = knows

    def streams(self) -> dict[str, dict[str, Any]]:
        return {
            "text": {"use": "text:Text", "max_length": 9},
            "video": {"use": "codes:Codes", "num_codes": 4, "max_length": 3},
        }

    def word_hidden(self, out: Any) -> Tensor:
        ids = out.stream("text").data
        codes = (
            out.stream("video").data[:, 0] if "video" in out.batch.streams else torch.zeros_like(ids[:, 0])
        )
        said = torch.tensor(self.config.ids)[codes if self.knows else torch.zeros_like(codes)]
        return said[:, None, None].expand(*ids.shape, 1)

    def predict_words(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[..., 0], self.config.vocab_size).float()


def test_a_model_that_sees_the_answer(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [tokenizer.ids(colour)[0] for colour in COLOURS]
    model = SaysTheCode(ids=ids, vocab_size=tokenizer.vocab_size, knows=True).eval()
    loaded = common_model.Loaded(model, tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)
    rows = [
        {"id": str(k), "texts": [text(f"the {COLOURS[k % 4]} ring", "asr")], "video_tokens": [k % 4]}
        for k in range(40)
    ]
    rows = [rows[k] for k in np.random.default_rng(0).permutation(40)]
    schema = pa.schema([("id", pa.string()), ("texts", TEXTS), ("video_tokens", pa.list_(pa.int32()))])
    data = dataset(tmp_path, pa.Table.from_pylist(rows, schema), name="rows", shard_rows=16)
    measure: Callable[..., Any] = lambda **more: run_gather(  # noqa: E731
        Cloze(model=Weights(path="x"), batch_size=7, **more), [data], tmp_path / "out", say=lambda _: None
    ).table.to_pylist()
    found = {row["name"]: row["value"] for row in measure(words=list(COLOURS))}
    assert found["paired/top1"] == 1.0
    shuffled = np.mean([rows[k]["video_tokens"] == rows[(k + 20) % 40]["video_tokens"] for k in range(40)])
    assert found["shuffled/top1"] == pytest.approx(shuffled)
    assert found["alone/top1"] == found["untrained/top1"] == 0.25
    assert found["gain/alone/top1"] > 4
    with pytest.raises(VlpipeError, match="no text has a word to mask"):
        measure(words=["purple"])
