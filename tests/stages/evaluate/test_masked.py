"""Accuracy on masked words with the true and with a shuffled image, of a model that needs no training to be judged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.evaluate.masked import MaskedAccuracy, partnered, predictions

WORDS = ("red", "blue", "square", "ring")
MASK: dict[str, list[str | dict[str, Any]]] = {"text": ["mask_text:MaskText"]}


class Oracle:
    """Predicts the word whose id stands in the image of the sample, wherever a word is masked."""

    def word_hidden(self, out: Outputs) -> torch.Tensor:
        length = out.stream("text").data.shape[1]
        return out.stream("image").data[:, None].expand(-1, length)

    def predict_words(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(hidden, 10)


def test_a_shuffled_partner_is_the_next_sample() -> None:
    words = torch.tensor([[1, 4, 2], [1, 5, 2], [1, 4, 2]])
    masked = torch.tensor([[False, True, False]]).expand(3, -1)
    target = words.masked_fill(~masked, -100)
    streams = {"text": Stream(words, target={"ids": target}), "image": Stream(words[:, 1])}
    out = Outputs(Oracle(), Batch(streams, same=torch.arange(3)), grad=False)
    found = {}
    for partner in ("true", "shuffled"):
        for name, guess, truth in predictions(
            partnered(out, "text", partner), "text", {"b": torch.tensor([5])}
        ):
            found[name, partner] = (guess == truth).tolist()
    assert found["text", "true"] == [True, True, True]
    assert found["text", "shuffled"] == [False, False, True]
    assert found["text/b", "true"] == [True]
    assert found["text/b", "shuffled"] == [False]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (12 * shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def model_folder(path: Path) -> Weights:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 9, 60)
    model = Vilt(
        vocab_size=tokenizer.vocab_size,
        image_size=16,
        patch_size=8,
        width=16,
        layers=1,
        heads=2,
        max_text_length=8,
    )
    folder.save(model, path)
    tokenizer.save(path / "tokenizer")
    return Weights(path=str(path))


def test_figures_of_a_vilt(tmp_path: Path) -> None:
    rows = [
        {"id": f"{k}", "url": "", "texts": [text(" ".join(WORDS[k % 4 :] + WORDS[: k % 4]), "web")]}
        | {"sha256": None, "format": "PNG", "width": 16, "height": 16, "image": png(k)}
        for k in range(20)
    ]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])))
    weights = model_folder(tmp_path / "model")
    stage = MaskedAccuracy(model=weights, corrupt=MASK, words={"colour": ["red", "blue"]}, batch_size=8)
    got = run_gather(stage, [data], tmp_path / "run").table.to_pylist()
    assert [row["name"] for row in got] == [
        f"{name}/{kind}" for name in ("text", "text/colour") for kind in ("true", "shuffled", "prior")
    ]
    assert got[0]["num_rows"] > got[3]["num_rows"] > 0
    again = run_gather(stage, [data], tmp_path / "again").table.to_pylist()
    assert got == again
    for wrong, message in (
        ({"corrupt": {"regions": ["mask_regions:MaskRegions"]}}, "reads no stream 'regions'|'regions'"),
        ({"words": {"colour": ["green"]}}, "not a single token of the model's vocabulary: green"),
        ({"batch_size": 32}, "20 samples do not fill a batch of 32"),
    ):
        with pytest.raises((VlpipeError, ValueError), match=message):
            run_gather(
                MaskedAccuracy(**{"model": weights, "corrupt": MASK, "batch_size": 8, **wrong}),
                [data],
                tmp_path / "wrong",
            )
