"""Codebooks of patches, the column of codes, accuracy on hidden codes; a training run with each way to get codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from vlpipe.models import folder
from vlpipe.models.systems.images.beit import Beit
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.image_codes.accuracy import CodeAccuracy
from vlpipe.stages.image_codes.codes import ImageCodes
from vlpipe.stages.image_codes.kmeans import kmeans, nearest
from vlpipe.stages.image_codes.patches import CODES, FitPatchCodebook
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
FIT = FitPatchCodebook(num_codes=6, patch_size=4, image_size=16, per_image=5)
BEIT: dict[str, Any] = {
    "use": "beit:Beit",
    "num_codes": 6,
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "layers": 1,
    "heads": 2,
}
MASK = {"use": "mask_blocks:MaskBlocks", "patch": 8, "min_patches": 4}


def test_kmeans_finds_separate_groups() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, 3)) * 20
    points = np.concatenate([c + rng.normal(size=(40, 3)) * 0.1 for c in centres])
    found = kmeans(points, 7, iterations=20, seed=3)
    ids, distances = nearest(points, found)
    assert sorted(Counter(ids.tolist()).values()) == [40] * 7
    for k in range(7):
        np.testing.assert_allclose(found[ids[40 * k]], points[40 * k : 40 * (k + 1)].mean(0))
    wanted = ((points[:, None] - found[None]) ** 2).sum(2)
    assert np.array_equal(ids, wanted.argmin(1))
    np.testing.assert_allclose(distances, wanted.min(1), atol=1e-9)
    assert np.array_equal(found, kmeans(points, 7, iterations=20, seed=3))


def test_kmeans_lowers_the_distance_and_copes_with_equal_points() -> None:
    points = np.random.default_rng(1).random((300, 4))
    spread = [nearest(points, kmeans(points, 12, iterations=n, seed=0))[1].sum() for n in (1, 3, 30)]
    assert spread[0] > spread[1] > spread[2]
    two = np.repeat([[0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    assert nearest(two, kmeans(two, 3, iterations=5, seed=0))[1].max() == 0


@pytest.fixture
def rows(image_rows: Rows) -> pa.Table:
    return image_rows([[]] * 40)


@pytest.fixture
def fitted(rows: pa.Table, tmp_path: Path) -> GatherOutput:
    return run_gather(FIT, [dataset(tmp_path / "rows", rows, shard_rows=15)], tmp_path / "fit")


def test_a_codebook_is_fitted_to_patches(rows: pa.Table, fitted: GatherOutput, tmp_path: Path) -> None:
    assert fitted.table.schema == CODES
    assert sum(fitted.table["num_patches"].to_pylist()) == 40 * 5
    model = folder.load(fitted.artifacts)
    centroids = model.codebook.centroids
    assert centroids.shape == (6, 48)
    assert len(centroids.unique(dim=0)) == 6
    assert 0 <= float(centroids.min()) <= float(centroids.max()) <= 1
    assert FIT.stand_in({}).config.codebook["num_codes"] == 6
    again = run_gather(FIT, [dataset(tmp_path / "other", rows)], tmp_path / "again")
    assert torch.equal(folder.load(again.artifacts).codebook.centroids, centroids)
    few = replace(FIT, max_patches=50)
    found = run_gather(few, [dataset(tmp_path / "few", rows)], tmp_path / "few_fit").table
    assert sum(found["num_patches"].to_pylist()) == 50
    with pytest.raises(VlpipeError, match="of which fewer than num_codes 300 are different"):
        run_gather(replace(FIT, num_codes=300), [dataset(tmp_path / "r", rows)], tmp_path / "none")
    assert replace(FIT, image_size=18).preflight() == [
        "image_size must be a multiple of patch_size, got 18 and 4"
    ]


def test_codes_are_those_of_the_codebook(rows: pa.Table, fitted: GatherOutput) -> None:
    stage = ImageCodes(model=Weights(path=str(fitted.artifacts)), batch_size=16)
    broken = rows.set_column(
        2, rows.schema.field(2), pa.array([b"none", *rows["image"].to_pylist()[1:]], pa.binary())
    )
    out = run_map(stage, broken)
    assert [reject.why for reject in out.rejects] == ["not_an_image"]
    codebook = folder.load(fitted.artifacts).codebook
    wanted = codebook(torch.from_numpy(load_pixels(rows["image"].to_pylist()[1:], 16)))
    assert out.table["image_codes"].to_pylist() == wanted.tolist()
    assert len(set(wanted.flatten().tolist())) == 6
    steps = {
        "fit": FIT,
        "beit": Train(model=BEIT, objectives=["images.masked_codes:MaskedImageCodes"], steps=1),
    }
    assert ImageCodes(model=Weights(step="fit")).preflight_after(steps) == []


def test_codes_of_a_transformers_folder(rows: pa.Table, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=9)
    FlavaImageCodebook(config).save_pretrained(tmp_path / "dalle")
    out = run_map(ImageCodes(model=Weights(path=str(tmp_path / "dalle")), batch_size=16), rows.slice(0, 3))
    codes = out.table["image_codes"].to_pylist()
    assert {len(one) for one in codes} == {14 * 14}  # 112 pixels
    values = torch.from_numpy(load_pixels(rows["image"].to_pylist()[:3], 112))
    codebook = folder.load(tmp_path / "dalle").codebook
    assert codes == codebook(values).tolist()


@pytest.fixture
def coded(rows: pa.Table, fitted: GatherOutput) -> pa.Table:
    return run_map(ImageCodes(model=Weights(path=str(fitted.artifacts)), batch_size=16), rows).table


def recipe_of(**more: Any) -> Train:
    values: dict[str, Any] = {
        "model": BEIT,
        "views": {"mim": [MASK]},
        "objectives": [{"use": "images.masked_codes:MaskedImageCodes", "view": "mim"}],
        "batch_size": 8,
        "steps": 4,
        "lr": 1e-3,
        "log_every": 1,
        "loader_threads": 1,
    }
    return Train(**{**values, **more})


def test_it_trains_on_codes_of_a_column(coded: pa.Table, rows: pa.Table, tmp_path: Path) -> None:
    recipe = recipe_of()
    assert recipe.preflight() == []
    with pytest.raises(SchemaError, match="reads column 'image_codes', which its input does not have"):
        recipe.schema(rows.schema)
    out = run_gather(recipe, [dataset(tmp_path / "coded", coded)], tmp_path / "run")
    values = {row["name"] for row in out.table.to_pylist()}
    assert {"mim", "mim_accuracy", "loss"} <= values
    micro = run_gather(replace(recipe, accumulate=2), [dataset(tmp_path / "c", coded)], tmp_path / "micro")
    first, other = (
        [row["value"] for row in found.table.to_pylist() if row["name"] == "mim"] for found in (out, micro)
    )
    assert first == pytest.approx(other, rel=1e-5)


def test_it_trains_on_codes_of_a_frozen_codebook(
    rows: pa.Table, fitted: GatherOutput, tmp_path: Path
) -> None:
    """The same crop in both sizes, with a codebook that training leaves as it is."""
    augment = {"crop_scale": [0.3, 1.0], "flip": True, "jitter": [0.4, 0.4, 0.4, 0.1]}
    spec = {"use": "patches:PatchCentroids", "num_codes": 6, "patch_size": 4}
    recipe = recipe_of(
        model={**BEIT, "codebook": spec},
        streams={"image": {"use": "two_sizes:TwoSizes", "augment": augment}},
        init_parts=[InitPart(weights=Weights(path=str(fitted.artifacts)), part="codebook")],
    )
    assert recipe.preflight() == []
    assert recipe.schema(rows.schema) is not None
    out = run_gather(recipe, [dataset(tmp_path / "r", rows)], tmp_path / "run")
    model = folder.load(out.artifacts)
    assert torch.equal(model.codebook.centroids, folder.load(fitted.artifacts).codebook.centroids)
    with pytest.raises(ValueError, match="no weights were loaded"):
        run_gather(replace(recipe, init_parts=[]), [dataset(tmp_path / "s", rows)], tmp_path / "none")
    (problem,) = replace(recipe, streams={}).preflight()
    assert "ImageWithCodes has no parameter 'second_size'" in problem


def test_accuracy_is_a_share_of_hidden_codes(coded: pa.Table, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Beit(**{name: value for name, value in BEIT.items() if name != "use"}).eval()
    torch.nn.init.normal_(model.code_head.weight)
    folder.save(model, tmp_path / "model")
    stage = CodeAccuracy(model=Weights(path=str(tmp_path / "model")), mask=[MASK], batch_size=8)
    rows = dataset(tmp_path / "coded", coded)
    found = run_gather(stage, [rows], tmp_path / "run").table.to_pylist()
    figures = {row["name"]: row["value"] for row in found}
    assert found[0]["num_rows"] == found[1]["num_rows"] > 40 * 0.4 * 16
    assert 0 < figures["code_accuracy"] < 1
    assert 1 / 6 < figures["code_prior"] < 1
    constant = torch.zeros(6)
    constant[3] = 1.0
    model.code_head.weight.data.zero_()
    model.code_head.bias.data.copy_(constant)
    folder.save(model, tmp_path / "model")
    always = run_gather(stage, [rows], tmp_path / "again").table.to_pylist()
    codes = Counter(code for row in coded["image_codes"].to_pylist() for code in row)
    share = {row["name"]: row["value"] for row in always}["code_accuracy"]
    assert share == pytest.approx(codes[3] / codes.total(), abs=0.1)  # of the hidden ones, not of all
    assert {row["name"]: row["value"] for row in always}["code_prior"] == figures["code_prior"]
    with pytest.raises(VlpipeError, match="40 samples do not fill a batch of 64"):
        run_gather(replace(stage, batch_size=64), [rows], tmp_path / "few")
