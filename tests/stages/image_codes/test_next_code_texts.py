"""The next code given a text: with one's own text, and with another row's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.models.parity import noisy
from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.dalle import Dalle
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.image_codes.next_code import NextCodeAccuracy
from vlpipe.stages.train.train import Train

SAID = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "pink") for shape in ("ring", "box")]
DALLE: dict[str, Any] = {
    "num_codes": 7,
    "grid": 2,
    "max_text_length": 12,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "kernel": 3,
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(SAID)] * 20, 120)


@pytest.fixture
def weights(tokenizer: Tokenizer, tmp_path: Path) -> Weights:
    torch.manual_seed(0)
    folder.save(noisy(Dalle.from_spec({**DALLE, "init_std": 0.5}, tokenizer)), tmp_path / "model")
    tokenizer.save(tmp_path / "model/tokenizer")
    return Weights(path=str(tmp_path / "model"))


def rows(said: list[str]) -> pa.Table:
    codes = np.random.default_rng(0).integers(0, 7, (len(said), 4)).tolist()
    return pa.table(
        {
            "id": [f"r{k}" for k in range(len(said))],
            "texts": pa.array([[text(one, "human")] for one in said], TEXTS),
            "image_codes": pa.array(codes, pa.list_(pa.int32())),
        }
    )


def nats(weights: Weights, table: pa.Table, folder_: Path, **more: Any) -> float:
    stage = NextCodeAccuracy(model=weights, batch_size=8, **more)
    found = run_gather(stage, [dataset(folder_ / "rows", table)], folder_ / "out").table
    return dict(zip(found["name"].to_pylist(), found["value"].to_pylist(), strict=True))["next_code_nats"]


def test_nats_are_those_of_the_row_s_text(weights: Weights, tokenizer: Tokenizer, tmp_path: Path) -> None:
    table = rows(SAID)
    model = folder.load(weights.path).eval()
    ids, mask = tokenizer.encode(SAID, 12)
    codes = torch.tensor(table["image_codes"].to_pylist())
    streams = {"text": Stream(ids, mask.bool()), "image": Stream(codes)}
    hidden = Outputs(model, Batch(streams, same=torch.arange(8)), grad=False).next_code_hidden
    wanted = -model.predict_codes(hidden).log_softmax(-1).gather(2, codes[:, :, None]).mean()
    assert nats(weights, table, tmp_path / "own") == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_shuffled_texts_are_those_of_other_rows(weights: Weights, tmp_path: Path) -> None:
    own, other = (nats(weights, rows(SAID), tmp_path / str(s), shuffled=s) for s in (False, True))
    assert abs(own - other) > 1e-3
    same = [nats(weights, rows(["a red ring"] * 8), tmp_path / f"same{s}", shuffled=s) for s in (False, True)]
    assert same[0] == pytest.approx(same[1], rel=1e-6)


def test_it_trains_with_the_paper_s_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    recipe = Train(
        model={"use": "dalle:Dalle", **DALLE},
        tokenizer=File(path=str(tmp_path / "tokenizer")),
        objectives=[
            {"use": "lm:Lm", "weight": 0.125},
            {"use": "images.next_codes:NextCodes", "weight": 0.875},
        ],
        texts="images",
        batch_size=8,
        steps=30,
        lr=1e-2,
        log_every=1,
        loader_threads=1,
    )
    assert recipe.preflight() == []
    recipe.schema(rows(SAID).schema)
    table = run_gather(recipe, [dataset(tmp_path / "rows", rows(SAID))], tmp_path / "out").table.to_pylist()
    first = {r["name"]: r["value"] for r in table if r["step"] == 1}
    last = {r["name"]: r["value"] for r in table if r["step"] == 30}
    assert first["loss"] == pytest.approx(first["lm"] / 8 + 7 * first["next_code"] / 8, rel=1e-5)
    assert last["next_code"] < first["next_code"]
    assert last["lm"] < first["lm"]
