"""How much of a word the transport plan moves to the box of its object."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.word_region import WordRegion
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.evaluate.transport import TransportMass, covered, named_once, said_once

WORDS = {"square": ["square", "box"], "ring": ["ring"]}
BOXES = {"square": [0.0, 0.0, 16.0, 8.0], "ring": [12.0, 16.0, 32.0, 32.0]}  # of an image of 32 x 32


def test_a_patch_counts_by_what_the_box_covers_of_it() -> None:
    assert covered([0, 0, 32, 32], 32, 32, 2).tolist() == [[1, 1], [1, 1]]
    assert covered([12, 16, 32, 32], 32, 32, 2).tolist() == [[0, 0], [0.25, 1]]
    assert covered([0, 5, 100, 10], 200, 10, 2).tolist() == [[0, 0], [1, 0]]
    box = [3.0, 4.5, 17.0, 29.0]
    assert covered(box, 40, 30, 5).mean() == pytest.approx(14 * 24.5 / (40 * 30))


def test_labels_and_words_count_once() -> None:
    objects = [{"label": name, "box": []} for name in ("ring", "square", "ring", "cross")]
    assert [one["label"] for one in named_once(objects)] == ["square", "cross"]
    assert named_once(None) == []
    assert said_once([5, 6], [2, 5, 9]) == 5
    assert said_once([5, 6], [5, 9, 6]) is None
    assert said_once([5], [5, 5]) is None
    assert said_once((), [5]) is None


def png(shade: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (12 * shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def measured(tmp_path: Path, texts: list[str], scale: int = 1, max_text_length: int = 16) -> GatherOutput:
    """Rows of one square and one ring each, in images of 32 * scale x 32 pixels."""
    tokenizer = Tokenizer.train(["a red square beside a blue ring and a box"], vocab_size=100)
    torch.manual_seed(0)
    model = Vilt(
        vocab_size=tokenizer.vocab_size,
        image_size=32,
        patch_size=8,
        width=16,
        layers=1,
        heads=2,
        max_text_length=16,
    )
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    rows: list[dict[str, Any]] = [
        {
            **dict.fromkeys(f.name for f in [*LISTED, *IMAGE_FIELDS]),
            "id": f"{k}",
            "url": "",
            "texts": [text(one, "web")],
            "width": 32 * scale,
            "height": 32,
            "image": png(k, (32 * scale, 32)),
            "objects": [
                {"label": name, "box": [box[0] * scale, box[1], box[2] * scale, box[3]], "attributes": []}
                for name, box in BOXES.items()
            ],
        }
        for k, one in enumerate(texts)
    ]
    schema = pa.schema([*LISTED, *IMAGE_FIELDS, ("objects", OBJECTS)])
    data = dataset(tmp_path / "data", pa.Table.from_pylist(rows, schema))
    stage = TransportMass(
        model=Weights(path=str(tmp_path / "model")),
        words=WORDS,
        batch_size=2,
        max_text_length=max_text_length,
    )
    assert stage.schema(schema) is not None
    return run_gather(stage, [data], tmp_path / "run")


def values(got: GatherOutput) -> dict[str, tuple[float, int]]:
    return {row["name"]: (row["value"], row["num_rows"]) for row in got.table.to_pylist()}


TEXTS = [
    "a red square beside a ring",
    "a blue ring",
    "a box",
    "a square and a box",
    "red",
]  # 4 words to measure


@pytest.mark.parametrize("scale", [1, 2])
def test_a_plan_that_knows_the_boxes_and_one_that_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    areas = {name: (b[2] - b[0]) * (b[3] - b[1]) / 1024 for name, b in BOXES.items()}
    uniform = (2 * areas["square"] + 2 * areas["ring"]) / 4

    def even(self: WordRegion, out: Outputs) -> torch.Tensor:
        rows, length = out.stream("text").data.shape
        return torch.full((rows, 17, length), 1 / 16)  # a class token and 4 x 4 patches

    monkeypatch.setattr(WordRegion, "plan", even)
    found = values(measured(tmp_path / "even", TEXTS, scale))
    assert found["mass"] == (pytest.approx(uniform), 4)
    assert found["mass_uniform"] == (pytest.approx(uniform), 4)

    def corner(self: WordRegion, out: Outputs) -> torch.Tensor:
        plan = torch.zeros_like(even(self, out))
        plan[:, 1] = 0.5  # the first patch lies within the square's box, and not in the ring's
        return plan

    monkeypatch.setattr(WordRegion, "plan", corner)
    assert values(measured(tmp_path / "corner", TEXTS, scale))["mass"] == (pytest.approx(0.5), 4)


def test_the_plan_of_a_real_model(tmp_path: Path) -> None:
    found = values(measured(tmp_path, TEXTS))
    assert found["mass"][1] == 4
    assert 0 < found["mass"][0] < 1
    assert found["mass_se"][0] < 0.5


def test_words_that_are_cut_off_are_left_out(tmp_path: Path) -> None:
    """The last of a text's tokens, which is its end if it was not cut, takes no part."""
    found = values(measured(tmp_path, TEXTS, max_text_length=4))  # "a red square", "a blue ring", "a box"
    assert found["mass_uniform"] == (pytest.approx(16 * 8 / 1024), 1)
    assert 0 < found["mass"][0] < 1


def test_no_word_to_measure_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="no text has a word of `words` that names one object of its image"):
        measured(tmp_path, ["a red", "blue"])


def test_the_plan_moves_all_of_each_word() -> None:
    torch.manual_seed(0)
    model = Vilt(
        vocab_size=30, image_size=32, patch_size=8, width=16, layers=1, heads=2, max_text_length=16
    ).eval()
    from vlpipe.models.interface.batch import Batch, Stream

    mask = torch.arange(7)[None] < torch.tensor([7, 5, 4])[:, None]
    streams = {"text": Stream(torch.randint(5, 30, (3, 7)), mask), "image": Stream(torch.randn(3, 3, 32, 32))}
    plan = WordRegion().plan(Outputs(model, Batch(streams, same=torch.arange(3)), grad=False)).numpy()
    assert plan.shape == (3, 17, 7)
    np.testing.assert_allclose(plan.sum((1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(plan[1].sum(0), [0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0], atol=1e-4)
    assert plan[:, 0].max() == 0  # the class token takes no part
