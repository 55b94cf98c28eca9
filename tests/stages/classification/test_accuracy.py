"""Accuracy of a classifier against a plain loop over the images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.images.vit import Vit
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.classification.accuracy import Accuracy
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
SIZES = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
CLASSES = 9


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    torch.manual_seed(0)
    model = Vit(num_classes=CLASSES, **SIZES)
    torch.nn.init.normal_(model.classifier.weight)
    folder.save(model, tmp_path / "model")
    return Weights(path=str(tmp_path / "model"))


def labelled(image_rows: Rows, labels: list[int | None]) -> pa.Table:
    return image_rows([[]] * len(labels)).append_column("label", pa.array(labels, pa.int32()))


def test_figures_are_those_of_a_loop(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    labels = [None if k % 10 == 7 else k % CLASSES for k in range(40)]
    table = labelled(image_rows, labels)
    out = run_gather(Accuracy(model=weights, batch_size=16), [dataset(tmp_path / "rows", table)], tmp_path)
    assert out.table.schema == RESULTS
    model = folder.load(weights.path).eval()
    right = among_five = num = 0
    for data, label in zip(table["image"].to_pylist(), labels, strict=True):
        if label is not None:
            batch = Batch({"image": Stream(torch.from_numpy(load_pixels([data], 16)))}, same=torch.arange(1))
            best = Outputs(model, batch, grad=False).logits[0].argsort(descending=True).tolist()
            num, right, among_five = num + 1, right + (best[0] == label), among_five + (label in best[:5])
    share = right / num
    prior = max(Counter(label for label in labels if label is not None).values()) / num
    wanted = {
        "accuracy": share,
        "accuracy@5": among_five / num,
        "accuracy_prior": prior,
        "accuracy_se": math.sqrt(share * (1 - share) / num),
    }
    assert {row["name"]: row["value"] for row in out.table.to_pylist()} == pytest.approx(wanted)
    assert set(out.table["num_rows"].to_pylist()) == {36}
    assert 0 < right < num


@pytest.mark.parametrize(("score", "wanted"), [(torch.nan, (0.0, 0.0)), (1.0, (0.25, 0.75))])
def test_equal_scores_are_no_answer(
    weights: Weights,
    image_rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: float,
    wanted: tuple[float, float],
) -> None:
    """Of equal ones the first class comes first; what is no number is wrong."""
    monkeypatch.setattr(Vit, "logits", lambda self, out: torch.full((len(out), CLASSES), score))
    rows = dataset(tmp_path / "rows", labelled(image_rows, [0, 1, 4, 8]))
    found = run_gather(Accuracy(model=weights, batch_size=16), [rows], tmp_path).table.to_pylist()
    figures = {row["name"]: row["value"] for row in found}
    assert (figures["accuracy"], figures["accuracy@5"]) == wanted


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_of_the_model(
    weights: Weights, image_rows: Rows, tmp_path: Path, label: int
) -> None:
    rows = labelled(image_rows, [0, label])
    with pytest.raises(VlpipeError, match=f"label is {label}, wanted .* below num_classes {CLASSES}"):
        run_gather(Accuracy(model=weights), [dataset(tmp_path / "rows", rows)], tmp_path)


def test_what_cannot_be_judged_is_said(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    stage = Accuracy(model=weights, batch_size=16)
    with pytest.raises(SchemaError, match="reads column 'label', which its input does not have"):
        stage.schema(image_rows([[]]).schema)
    broken = labelled(image_rows, [1]).set_column(2, "image", pa.array([b"no image"], pa.binary()))
    for rows in (broken, labelled(image_rows, [None])):
        with pytest.raises(VlpipeError, match="there is no readable image with a label"):
            run_gather(stage, [dataset(tmp_path / "rows", rows)], tmp_path)
    steps = {"mae": Train(model={"use": "mae:Mae"}, objectives=["pixel_mse:PixelMse"], steps=1)}
    (problem,) = Accuracy(model=Weights(step="mae")).preflight_after(steps)
    assert problem.endswith("a Mae, which does not have what this step needs (Tells the class of an image)")
