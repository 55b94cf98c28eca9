"""Numbers of rows, shares of colours, figures on held-out images; a training with each kind of task."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.systems.pretext.cmc import Cmc
from vlpipe.models.systems.pretext.colorization import Colorization
from vlpipe.models.systems.pretext.jigsaw import Jigsaw
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.loading.makers.row_index import RowIndex as RowIndexMaker
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.pretext.colour_prior import FitColourPrior
from vlpipe.stages.pretext.figures import TaskFigures
from vlpipe.stages.pretext.row_index import NumberRows, RowIndex
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
TRAIN: dict[str, Any] = {"steps": 3, "batch_size": 4, "log_every": 1, "loader_threads": 1, "lr": 1e-3}


def plain(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rows(image_rows: Rows) -> pa.Table:
    return image_rows([[]] * 12)


def numbered(rows: pa.Table, tmp_path: Path, shard_rows: int) -> pa.Table:
    made = run_gather(
        NumberRows(),
        [dataset(tmp_path / f"in{shard_rows}", rows, shard_rows=shard_rows)],
        tmp_path / f"n{shard_rows}",
    )
    assert made.table.to_pylist() == [{"name": "num_rows", "value": 12.0, "num_rows": 12}]
    return run_map(RowIndex(numbers=File(path=str(made.artifacts / "hashes.npy"))), rows).table


def test_rows_are_numbered_whatever_their_shards(rows: pa.Table, tmp_path: Path) -> None:
    found = numbered(rows, tmp_path, 5)
    assert sorted(found["row_index"].to_pylist()) == list(range(12))
    assert found["row_index"].to_pylist() == numbered(rows, tmp_path, 12)["row_index"].to_pylist()
    other = rows.set_column(0, rows.schema.field(0), pa.array([f"other{k}" for k in range(12)]))
    stage = RowIndex(numbers=File(path=str(tmp_path / "n5/artifacts/hashes.npy")))
    if not Path(stage.numbers.path).exists():
        stage = RowIndex(numbers=File(path=str(next(tmp_path.rglob("hashes.npy")))))
    with pytest.raises(VlpipeError, match="row other0 is not among the rows that were numbered"):
        run_map(stage, other)
    twice = pa.concat_tables([rows, rows])
    with pytest.raises(VlpipeError, match="two rows have the same id"):
        run_gather(NumberRows(), [dataset(tmp_path / "twice", twice)], tmp_path / "none")


def test_a_number_must_be_below_that_of_the_rows() -> None:
    maker, rng = RowIndexMaker(num_rows=3), np.random.default_rng(0)
    assert maker(Row("a", 0, [], {"row_index": 2}), "", rng)["data"] == 2
    for wrong in (3, -1, None):
        with pytest.raises(VlpipeError, match="wanted a whole number below num_rows 3"):
            maker(Row("a", 0, [], {"row_index": wrong}), "", rng)


def test_shares_of_colours_are_counted_and_smoothed(image_rows: Rows, tmp_path: Path) -> None:
    """Three grey pictures and a red one: 3/4 and 1/4, spread over the bins around them."""
    pictures = [plain((128, 128, 128))] * 3 + [plain((255, 0, 0)), b"none"]
    found = run_gather(
        FitColourPrior(image_size=8),
        [dataset(tmp_path / "in", image_rows([[]] * 5, pictures))],
        tmp_path / "fit",
    )
    assert [reject.why for reject in found.rejects] == ["not_an_image"]
    figures = {row["name"]: row["value"] for row in found.table.to_pylist()}
    assert figures["colour_prior"] == 0.75
    bins = folder.load(found.artifacts).bins
    assert float(bins.prior.sum()) == pytest.approx(1, abs=1e-5)
    assert bins.points[int(bins.prior.argmax())].tolist() == [0, 0]
    red = bins.points[:, 0] > 50
    assert float(bins.prior[red].sum()) == pytest.approx(0.25, abs=1e-3)
    around = [math.exp(-(a**2 + b**2) / 50) for a in range(-30, 40, 10) for b in range(-30, 40, 10)]
    assert float(bins.prior.max()) == pytest.approx(0.75 / sum(around), rel=0.02)
    grey, red_weight = (
        float(bins.weights()[int(bins.nearest(bins.points.new_tensor([ab])))])
        for ab in ([0.0, 0.0], [80.0, 67.0])
    )
    balanced = 0.75 * grey / (0.75 * grey + 0.25 * red_weight)
    assert figures["balanced_prior"] == pytest.approx(max(balanced, 1 - balanced), rel=1e-3)
    assert FitColourPrior().stand_in({}).bins.num_bins == 309


def figures_of(model: Any, rows: pa.Table, tmp_path: Path, **options: Any) -> dict[str, float]:
    folder.save(model, tmp_path / "model")
    stage = TaskFigures(model=Weights(path=str(tmp_path / "model")), batch_size=4, **options)
    table = run_gather(stage, [dataset(tmp_path / "held", rows)], tmp_path / "figures").table
    assert set(table["num_rows"].to_pylist()) == {12}
    return {row["name"]: row["value"] for row in table.to_pylist()}


JIGSAW: dict[str, Any] = {
    "image_size": 24,
    "tile_size": 8,
    "num_tiles": 4,
    "num_orders": 4,
    "widths": [2, 2, 2, 2, 2],
    "stem": "small",
    "groups": 1,
    "tile_width": 2,
    "width": 3,
}
PUZZLE: dict[str, Any] = {
    "views": {"puzzle": [{"use": "jigsaw:Jigsaw", "grid": 2, "tile": 8, "num_orders": 4}]},
    "objectives": [{"use": "images.drawn_class:DrawnClass", "view": "puzzle"}],
}


def test_figures_of_a_model_that_always_says_the_same(rows: pa.Table, tmp_path: Path) -> None:
    model = Jigsaw(**JIGSAW)
    model.order.weight.data.zero_()
    model.order.bias.data.copy_(model.order.bias.data.new_tensor([9.0, 0.0, 0.0, 0.0]))
    found = figures_of(model, rows, tmp_path, **PUZZLE)
    likely = math.log(math.exp(9) + 3) - 9
    accuracy = found["drawn_accuracy"]
    assert accuracy * 12 == pytest.approx(round(accuracy * 12))
    assert found["drawn"] == pytest.approx(likely + (1 - accuracy) * 9, rel=1e-5)
    stage = TaskFigures(model=Weights(path=str(tmp_path / "model")), batch_size=64, **PUZZLE)
    with pytest.raises(VlpipeError, match="12 samples do not fill a batch of 64"):
        run_gather(stage, [dataset(tmp_path / "few", rows)], tmp_path / "none")


def losses(table: pa.Table, name: str) -> list[float]:
    return [row["value"] for row in table.to_pylist() if row["name"] == name]


def test_a_training_with_puzzles(rows: pa.Table, tmp_path: Path) -> None:
    stage = Train(model={"use": "jigsaw:Jigsaw", **JIGSAW}, **PUZZLE, **TRAIN)
    found = run_gather(stage, [dataset(tmp_path / "in", rows)], tmp_path / "train")
    assert len(losses(found.table, "drawn")) == 3
    assert isinstance(folder.load(found.artifacts), Jigsaw)


def test_a_training_with_a_memory_bank(rows: pa.Table, tmp_path: Path) -> None:
    model = {"use": "cmc:Cmc", "num_rows": 12, "image_size": 8, "layers": [1], "width": 2, "stem": "small"}
    objective = {"use": "images.memory_bank:MemoryBank", "num_negatives": 5}
    stage = Train(model=model, objectives=[objective], **TRAIN)
    found = run_gather(stage, [dataset(tmp_path / "in", numbered(rows, tmp_path, 12))], tmp_path / "train")
    assert len(losses(found.table, "memory_bank")) == 3
    assert isinstance(folder.load(found.artifacts), Cmc)
    too_few = replace(stage, model={**model, "num_rows": 11})
    with pytest.raises(VlpipeError, match="wanted a whole number below num_rows 11"):
        run_gather(too_few, [dataset(tmp_path / "in2", numbered(rows, tmp_path, 12))], tmp_path / "none")


def test_a_training_with_shares_of_colours(rows: pa.Table, tmp_path: Path) -> None:
    data = [dataset(tmp_path / "in", rows)]
    fitted = run_gather(FitColourPrior(image_size=16), data, tmp_path / "fit")
    parts = [InitPart(weights=Weights(path=str(fitted.artifacts)), part="bins")]
    model = {"use": "colorization:Colorization", "image_size": 16, "width": 2}
    stage = Train(model=model, objectives=["images.colours:ColourClasses"], init_parts=parts, **TRAIN)
    found = run_gather(stage, data, tmp_path / "train")
    assert len(losses(found.table, "colours")) == 3
    trained = folder.load(found.artifacts)
    assert isinstance(trained, Colorization)
    assert trained.bins.prior.tolist() == folder.load(fitted.artifacts).bins.prior.tolist()
