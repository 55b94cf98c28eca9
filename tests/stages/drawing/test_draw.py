"""Images drawn for texts: one per draw whatever the batch, ranked by cosine, kept or not, painted as the decoder paints."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.generation.codes import draw_codes
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.systems.image_text.dalle import Dalle
from vlpipe.models.systems.images.dvae import Dvae
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.drawing.draw import DRAWN, DrawImages
from vlpipe.stages.train.train import Train

DALLE: dict[str, Any] = {
    "num_codes": 7,
    "grid": 2,
    "max_text_length": 12,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "kernel": 3,
}
DVAE: dict[str, Any] = {"num_codes": 7, "image_size": 16, "width": 4, "depth": 1, "code_width": 8}
CLIP: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 12,
    "embed_dim": 8,
}
SAID = ["a red circle", "two small blue squares on the left", "a green triangle"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train([" ".join(SAID)] * 20, 120)
    torch.manual_seed(0)
    models = {
        "model": Dalle.from_spec({**DALLE, "init_std": 0.5}, tokenizer),
        "painter": Dvae(**DVAE),
        "ranker": Clip.from_spec(CLIP, tokenizer),
    }
    for name, model in models.items():
        folder.save(model, root / name)
        tokenizer.save(root / name / "tokenizer")
    return {name: Weights(path=str(root / name)) for name in models}


@pytest.fixture
def rows() -> pa.Table:
    texts = [[text(said, "human"), text("another", "human")] for said in SAID]
    texts[1].insert(0, text("of the web", "web"))
    return pa.table({"id": ["r0", "r1", "r2"], "texts": pa.array(texts, TEXTS)})


def stage(made: dict[str, Weights], **more: Any) -> DrawImages:
    return DrawImages(**{**made, "num_images": 5, "batch_size": 16, **more})


def test_rows_are_as_declared(made: dict[str, Weights], rows: pa.Table) -> None:
    table = run_map(stage(made), rows).table
    assert table.schema.names == DRAWN.names
    found = table.to_pylist()
    assert [r["parent"] for r in found] == [p for p in ("r0", "r1", "r2") for _ in range(5)]
    assert len({r["id"] for r in found}) == 15
    assert [r["texts"][0]["text"] for r in found[::5]] == SAID
    for start in (0, 5, 10):
        own = found[start : start + 5]
        assert sorted(r["draw"] for r in own) == [r["rank"] for r in own] == [0, 1, 2, 3, 4]
        assert [r["score"] for r in own] == sorted((r["score"] for r in own), reverse=True)
    image = Image.open(io.BytesIO(found[0]["image"]))
    assert (image.size, image.format) == ((16, 16), found[0]["format"])
    assert len({r["sha256"] for r in found}) > 5


def test_images_are_what_the_models_make(made: dict[str, Weights], rows: pa.Table) -> None:
    """Codes from the generator of (seed, id, draw), painted by the decoder, scored by both encoders."""
    found = run_map(stage(made, seed=3), rows).table.to_pylist()
    dalle, dvae, clip = (folder.load(made[n].path).eval() for n in ("model", "painter", "ranker"))
    tokenizer = Tokenizer.load(made["model"].path)
    for row in (found[0], found[7]):
        ids, mask = tokenizer.encode([row["texts"][0]["text"]], 12)
        batch = Batch({"text": Stream(ids, mask.bool())}, same=torch.arange(1))
        generator = torch.Generator().manual_seed(seed_of(3, row["parent"], row["draw"]))
        codes = draw_codes(dalle, Outputs(dalle, batch, grad=False), generators=[generator])
        with torch.no_grad():
            values = (255 * dvae.paint(codes)[0]).round().byte().permute(1, 2, 0).numpy()
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
        assert np.abs(pixels.astype(int) - values.astype(int)).max() <= 1
        streams = {"image": Stream(torch.from_numpy(load_pixels([row["image"]], 16))), **batch.streams}
        out = Outputs(clip, Batch(streams, same=torch.arange(1)), grad=False)
        assert row["score"] == pytest.approx(float((out.image_feat * out.text_feat).sum()), abs=1e-5)


def test_an_image_does_not_depend_on_its_batch(made: dict[str, Weights], rows: pa.Table) -> None:
    whole = {r["id"]: r["image"] for r in run_map(stage(made), rows).table.to_pylist()}
    alone = run_map(stage(made, batch_size=32, num_images=2), rows.slice(1, 1)).table.to_pylist()
    assert len(alone) == 2
    assert all(whole[r["id"]] == r["image"] for r in alone)


def test_the_best_are_kept(made: dict[str, Weights], rows: pa.Table) -> None:
    whole = run_map(stage(made), rows).table.to_pylist()
    best = run_map(stage(made, keep=2), rows).table.to_pylist()
    assert [r["id"] for r in best] == [r["id"] for r in whole if r["rank"] < 2]
    unranked = run_map(stage(made, ranker=None, keep=3), rows).table.to_pylist()
    assert [(r["draw"], r["rank"], r["score"]) for r in unranked[:3]] == [(k, k, None) for k in range(3)]


def test_a_row_without_a_text_is_rejected(made: dict[str, Weights], rows: pa.Table) -> None:
    out = run_map(stage(made, source="web", num_images=1), rows)
    assert [(r.id, r.why) for r in out.rejects] == [("r0", "no_text"), ("r2", "no_text")]
    assert out.table["parent"].to_pylist() == ["r1"]


def test_wrong_settings_and_models_are_told_before_the_run(made: dict[str, Weights]) -> None:
    assert stage(made, keep=6).preflight() == ["keep must be at most num_images 5, got 6"]
    assert stage(made).preflight() == []
    steps = {
        "dvae": Train(model={"use": "dvae:Dvae", **DVAE}, objectives=["images.elb:Elb"], steps=1),
        "vit": Train(
            model={"use": "vit:Vit", "num_classes": 2}, objectives=["images.classify:Classify"], steps=1
        ),
    }
    wrong = replace(stage(made), model=Weights(step="dvae"), painter=Weights(step="vit"))
    found = wrong.preflight_after(steps)
    assert [f.partition(",")[0] for f in found] == ["step 'dvae' makes a Dvae", "step 'vit' makes a Vit"]
