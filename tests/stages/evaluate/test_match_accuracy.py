"""Accuracy at telling matching pairs, of a model whose answers are known."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.evaluate.matching.accuracy import MatchAccuracy

WORDS = ("red", "blue", "square", "ring")


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (12 * shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_figures_of_a_model_that_always_says_yes(tmp_path: Path) -> None:
    """Its accuracy is the share of matching rows: half of each batch, none, or what is drawn."""
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 9, 60)
    sizes = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "max_text_length": 8}
    model = Vilt(vocab_size=tokenizer.vocab_size, **sizes)  # type: ignore[arg-type]
    with torch.no_grad():
        model.match_head.bias.copy_(torch.tensor([-50.0, 50.0]))
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer")
    rows = [
        {"id": f"{k}", "url": "", "texts": [text(" ".join(WORDS[k % 4 :] + WORDS[: k % 4]), "web")]}
        | {"sha256": None, "format": "PNG", "width": 16, "height": 16, "image": png(k)}
        for k in range(20)
    ]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])))
    stage = MatchAccuracy(
        model=Weights(path=str(tmp_path / "model")),
        views={
            "half": [{"use": "mismatch:Mismatch", "law": "half"}],
            "wrong": [{"use": "mismatch:Mismatch", "rate": 1.0}],
        },
        batch_size=8,
    )
    got = run_gather(stage, [data], tmp_path / "run").table.to_pylist()
    assert {row["name"]: (row["value"], row["num_rows"]) for row in got} == {
        "half/accuracy": (0.5, 16),
        "half/prior": (0.5, 16),
        "wrong/accuracy": (0.0, 16),
        "wrong/prior": (1.0, 16),
    }
    with pytest.raises(VlpipeError, match="20 samples do not fill a batch of 32"):
        run_gather(
            MatchAccuracy(model=stage.model, views=stage.views, batch_size=32), [data], tmp_path / "again"
        )
    assert MatchAccuracy(model=stage.model, views={}).preflight() == [
        "views: wanted a view and its corruptors, got none"
    ]
