"""A palette, its codes in transformers' image processor, hidden places, and runs of iGPT on a column and on pictures."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.image_codes.codes import ImageCodes
from vlpipe.stages.image_codes.next_code import NextCodeAccuracy
from vlpipe.stages.image_codes.palette import FitPalette
from vlpipe.stages.loading.corruptors.mask_places import MaskPlaces
from vlpipe.stages.loading.makers.image import Image as Pictures
from vlpipe.stages.loading.makers.images.code_grid import CodeGrid
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
FIT = FitPalette(num_codes=6, image_size=4, per_image=8)
IGPT: dict[str, Any] = {
    "use": "igpt:Igpt",
    "num_codes": 6,
    "image_size": 4,
    "width": 16,
    "layers": 1,
    "heads": 2,
}
PALETTE = {"use": "patches:PatchCentroids", "num_codes": 6, "patch_size": 1}


@pytest.fixture
def rows(image_rows: Rows) -> pa.Table:
    return image_rows([[]] * 40)


@pytest.fixture
def fitted(rows: pa.Table, tmp_path: Path) -> GatherOutput:
    return run_gather(FIT, [dataset(tmp_path / "rows", rows, shard_rows=15)], tmp_path / "fit")


@pytest.fixture
def coded(rows: pa.Table, fitted: GatherOutput) -> pa.Table:
    return run_map(ImageCodes(model=Weights(path=str(fitted.artifacts)), batch_size=16), rows).table


def test_codes_are_those_of_transformers_processor(fitted: GatherOutput, coded: pa.Table) -> None:
    """Its backend is Pillow: both resize with Pillow's bicubic filter."""
    processor = AutoImageProcessor.from_pretrained(fitted.artifacts, backend="pil")
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in coded["image"].to_pylist()[:10]]
    wanted = processor(images, return_tensors="np")["input_ids"]
    assert coded["image_codes"].to_pylist()[:10] == np.asarray(wanted).tolist()
    assert len({code for one in coded["image_codes"].to_pylist() for code in one}) == 6


def test_a_row_with_other_codes_is_named() -> None:
    def row(codes: list[int]) -> Row:
        return Row("r1", 0, [], {"image_codes": pa.scalar(codes, pa.list_(pa.int32()))})

    maker, rng = CodeGrid(num_codes=6, num_places=4), np.random.default_rng(0)
    assert maker(row([0, 5, 2, 1]), "", rng)["data"].tolist() == [0, 5, 2, 1]
    with pytest.raises(
        VlpipeError, match="row r1: image_codes has 3 codes from 0 to 5, wanted 4 below num_codes 6"
    ):
        maker(row([0, 5, 2]), "", rng)
    with pytest.raises(
        VlpipeError, match="row r1: image_codes has 4 codes from 0 to 6, wanted 4 below num_codes 6"
    ):
        maker(row([0, 6, 2, 1]), "", rng)
    with pytest.raises(VlpipeError, match="row r1: image_codes has 0 codes, wanted 4"):
        maker(row([]), "", rng)


@pytest.mark.parametrize(
    ("maker", "num"), [(CodeGrid(num_codes=6, num_places=64), 64), (Pictures(size=16), 256)]
)
def test_each_place_is_hidden_as_often_as_told(maker: Any, num: int) -> None:
    """Within five standard deviations of a binomial; at least one of each image."""
    samples: Any = [{"image": {"data": np.zeros(num, np.int64)}} for _ in range(200)]
    found = MaskPlaces(rate=0.15)(samples, lambda k: np.random.default_rng([1, k]), {"image": maker})
    masks = np.stack([sample["image"]["target/masked"] for sample in found])
    assert masks.shape == (200, num)
    assert np.array_equal(masks, np.stack([sample["image"]["extra/masked"] for sample in found]))
    spread = math.sqrt(0.15 * 0.85 / masks.size)
    assert abs(masks.mean() - 0.15) < 5 * spread
    assert np.abs(masks.mean(0) - 0.15).max() < 5 * math.sqrt(0.15 * 0.85 / 200)
    rare = MaskPlaces(rate=1e-6)(samples, lambda k: np.random.default_rng([2, k]), {"image": maker})
    assert {int(sample["image"]["target/masked"].sum()) for sample in rare} == {1}
    with pytest.raises(ValueError, match="mask_places: rate must be between 0 and 1, got 1"):
        MaskPlaces(rate=1)


def recipe_of(**more: Any) -> Train:
    values: dict[str, Any] = {
        "model": IGPT,
        "objectives": ["images.next_codes:NextCodes"],
        "batch_size": 8,
        "steps": 30,
        "lr": 1e-2,
        "log_every": 5,
        "loader_threads": 1,
    }
    return Train(**{**values, **more})


def losses(out: GatherOutput, name: str) -> list[float]:
    return [r["value"] for r in out.table.to_pylist() if r["name"] == name]


def test_it_trains_on_a_column_without_pictures(coded: pa.Table, tmp_path: Path) -> None:
    rows = coded.select(["id", "image_codes"])
    recipe = recipe_of()
    assert recipe.preflight() == []
    recipe.schema(rows.schema)
    out = run_gather(recipe, [dataset(tmp_path / "rows", rows)], tmp_path / "out")
    found = losses(out, "next_code")
    assert found[-1] < found[0]

    stage = NextCodeAccuracy(model=Weights(path=str(out.artifacts)), batch_size=16)
    table = run_gather(stage, [dataset(tmp_path / "eval", rows.slice(0, 16))], tmp_path / "accuracy").table
    figures = dict(zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert set(table["num_rows"].to_pylist()) == {16 * 16}
    true = torch.tensor(rows["image_codes"].to_pylist()[:16])
    model = folder.load(out.artifacts)
    streams = {"image": Stream(true)}
    hidden = Outputs(model, Batch(streams, same=torch.arange(16)), grad=False).next_code_hidden
    logits = model.predict_codes(hidden)
    nats = -logits.log_softmax(-1).gather(2, true[:, :, None]).mean()
    assert figures == pytest.approx(
        {
            "next_code_accuracy": float((logits.argmax(2) == true).float().mean()),
            "code_prior": max(Counter(true.flatten().tolist()).values()) / true.numel(),
            "copied": float((true[:, 1:] == true[:, :-1]).sum()) / true.numel(),
            "next_code_nats": float(nats.detach()),
        },
        rel=1e-5,
    )
    with pytest.raises(VlpipeError, match="4 samples do not fill a batch of 16"):
        run_gather(stage, [dataset(tmp_path / "few", rows.slice(0, 4))], tmp_path / "none")


def test_both_ways_to_get_codes_train_the_same_model(
    coded: pa.Table, fitted: GatherOutput, tmp_path: Path
) -> None:
    part = InitPart(weights=Weights(path=str(fitted.artifacts)), part="codebook")
    pictures = recipe_of(model={**IGPT, "codebook": PALETTE}, init_parts=[part], steps=3)
    column = recipe_of(
        model={**IGPT, "codebook": PALETTE},
        init_parts=[part],
        steps=3,
        streams={"image": {"use": "code_grid:CodeGrid", "num_codes": 6, "num_places": 16}},
    )
    found = [
        run_gather(recipe, [dataset(tmp_path / f"rows{k}", coded)], tmp_path / f"out{k}")
        for k, recipe in enumerate((pictures, column))
    ]
    first, second = (folder.load(out.artifacts).state_dict() for out in found)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


def test_it_fills_hidden_codes(coded: pa.Table, tmp_path: Path) -> None:
    recipe = recipe_of(
        model={**IGPT, "causal": False},
        views={"masked": ["mask_places:MaskPlaces"]},
        objectives=[{"use": "images.masked_codes:MaskedImageCodes", "view": "masked"}],
    )
    assert recipe.preflight() == []
    found = losses(run_gather(recipe, [dataset(tmp_path / "rows", coded)], tmp_path / "out"), "mim")
    assert found[-1] < found[0]


def test_micro_batches_give_the_step_of_one_batch(coded: pa.Table, tmp_path: Path) -> None:
    found = [
        run_gather(
            recipe_of(steps=2, accumulate=k, log_every=1),
            [dataset(tmp_path / f"rows{k}", coded)],
            tmp_path / f"out{k}",
        )
        for k in (1, 4)
    ]
    first, second = (losses(out, "next_code") for out in found)
    assert first == pytest.approx(second, rel=1e-5)
