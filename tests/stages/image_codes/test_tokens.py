"""Tokens of a discrete VAE as a heavy column, and what is left of images that are painted from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.systems.images.dvae import Dvae
from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy_names
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.image_codes.codes import ImageCodes
from vlpipe.stages.image_codes.reconstruction import Reconstruction
from vlpipe.stages.image_codes.tokens import ImageTokens
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
DVAE: dict[str, Any] = {"num_codes": 7, "image_size": 16, "width": 4, "depth": 1, "code_width": 8}


@pytest.fixture
def rows(image_rows: Rows) -> pa.Table:
    return image_rows([[]] * 20)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    torch.manual_seed(0)
    folder.save(Dvae(**DVAE), tmp_path / "dvae")
    return Weights(path=str(tmp_path / "dvae"))


def test_tokens_are_codes_in_a_heavy_column(rows: pa.Table, weights: Weights) -> None:
    stage = ImageTokens(model=weights, batch_size=16)
    assert heavy_names(stage.schema(rows.schema)) == [*heavy_names(rows.schema), "image_codes"]
    light = ImageCodes(model=weights, batch_size=16)
    assert "image_codes" not in heavy_names(light.schema(rows.schema))
    tokens = run_map(stage, rows).table["image_codes"].to_pylist()
    assert tokens == run_map(light, rows).table["image_codes"].to_pylist()
    assert {len(one) for one in tokens} == {4}
    with pytest.raises(SchemaError, match="have a heavy column 'image_codes' from an earlier step already"):
        stage.schema(stage.schema(rows.schema))


def test_a_step_that_makes_a_discrete_vae_is_known_before_it_runs() -> None:
    made = {
        "dvae": Train(model={"use": "dvae:Dvae", **DVAE}, objectives=["images.elb:Elb"], steps=1),
        "vit": Train(
            model={"use": "vit:Vit", "num_classes": 2}, objectives=["images.classify:Classify"], steps=1
        ),
    }
    for stage in (ImageTokens, Reconstruction):
        assert stage(model=Weights(step="dvae")).preflight_after(made) == []
        assert (
            "which does not have what this step needs"
            in stage(model=Weights(step="vit")).preflight_after(made)[0]
        )


def test_reconstruction_by_hand(rows: pa.Table, weights: Weights, tmp_path: Path) -> None:
    found = run_gather(
        Reconstruction(model=weights, batch_size=16), [dataset(tmp_path / "rows", rows)], tmp_path / "out"
    ).table
    figures = dict(zip(found["name"].to_pylist(), found["value"].to_pylist(), strict=True))
    assert set(found["num_rows"].to_pylist()) == {20}
    model = folder.load(weights.path)
    pixels = torch.from_numpy(load_pixels(rows["image"].to_pylist(), 16))
    values = pixels * model.encoder.std + model.encoder.mean
    codes = model.encoder(pixels)
    with torch.no_grad():
        mse = float((model.paint(codes) - values).square().mean())
    flat = float(values.var((2, 3), correction=0).mean())
    shares = np.array(list(Counter(codes.flatten().tolist()).values())) / codes.numel()
    wanted = {
        "mse": mse,
        "mse_flat": flat,
        "codes_used": len(shares),
        "code_perplexity": np.prod(shares**-shares),
        "code_prior": shares.max(),
    }
    assert figures == pytest.approx(wanted, rel=1e-5)


def test_it_trains(rows: pa.Table, tmp_path: Path) -> None:
    """With an optimiser of its own choice the loss of 40 steps falls, and the encoder changes."""
    recipe = Train(
        model={"use": "dvae:Dvae", **DVAE},
        objectives=[{"use": "images.elb:Elb", "kl_steps": 20, "temperature_steps": 30}],
        batch_size=8,
        steps=40,
        lr=3e-3,
        log_every=10,
        loader_threads=1,
    )
    assert recipe.preflight() == []
    out = run_gather(recipe, [dataset(tmp_path / "rows", rows)], tmp_path / "out")
    losses = [r["value"] for r in out.table.to_pylist() if r["name"] == "elb"]
    assert losses[-1] < losses[0]
    assert {"logit_laplace", "code_kl", "code_perplexity"} <= set(out.table["name"].to_pylist())
    assert isinstance(folder.load(out.artifacts), Dvae)
