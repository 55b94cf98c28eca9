"""The linear probe by words of captions: what cannot be judged is said."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from probing_toys import MeanColour, colours, labelled_rows

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.classification.labels import WordLabels
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.probe import LinearProbe

WORDS = ["red", "Green", "blue"]


def rows_of(folder: Path, num: int, name: str, words: list[str] | None = None) -> Dataset:
    images, labels = colours(num, len(name), spread=120)
    table = labelled_rows(images, labels, name)
    said = [[text(f"a {(words or WORDS)[k].lower()} square", "human")] for k in labels]
    names = [n for n in table.column_names if n != "texts"]
    return dataset(folder / name, table.select(names).append_column("texts", pa.array(said, TEXTS)), name)


def test_words_of_captions_are_classes(colour_model: Weights, tmp_path: Path) -> None:
    inputs = [rows_of(tmp_path, num, name) for num, name in ((60, "fit"), (30, "test"))]
    stage = LinearProbe(model=colour_model, words=WORDS)
    assert stage.preflight() == []
    found = {row["name"]: row["value"] for row in run_gather(stage, inputs, tmp_path).table.to_pylist()}
    assert found["probe"] > 0.7 > found["probe_prior"]


@pytest.mark.parametrize(
    ("fit", "test", "said"), [(60, 0, "got 0 in test"), (4, 30, "5 readable .* got 4 in fit")]
)
def test_too_few_rows(colour_model: Weights, tmp_path: Path, fit: int, test: int, said: str) -> None:
    inputs = [
        rows_of(tmp_path, fit, "fit"),
        rows_of(tmp_path, test or 9, "test", None if test else ["x"] * 3),
    ]
    with pytest.raises(VlpipeError, match=said):
        run_gather(LinearProbe(model=colour_model, words=WORDS), inputs, tmp_path)


def test_an_embedding_that_is_not_finite(
    colour_model: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeanColour, "image_feat", lambda self, out: torch.full((len(out), 3), torch.nan))
    inputs = [rows_of(tmp_path, num, name) for num, name in ((60, "fit"), (30, "test"))]
    with pytest.raises(VlpipeError, match="an embedding that is not finite"):
        run_gather(LinearProbe(model=colour_model, words=WORDS), inputs, tmp_path)


@pytest.mark.parametrize("word", ["ice cream", "t-shirt", ""])
def test_a_class_that_is_not_one_word(colour_model: Weights, word: str) -> None:
    wanted = [f"words: {word!r} is not one word, so no caption has it"]
    assert LinearProbe(model=colour_model, words=["dog", word]).preflight() == wanted
    assert WordLabels(words=("dog", word)).preflight() == wanted
    (problem,) = LinearProbe(model=colour_model, words=["dog", "Dog"]).preflight()
    assert problem.startswith("words: wanted at least 2 different classes")
