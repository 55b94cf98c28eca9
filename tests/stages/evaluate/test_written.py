"""Captions and words from another image's encoding; images with several embeddings in retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.models.parity import outputs
from vlpipe.models import folder
from vlpipe.models.interface.batch import Stream
from vlpipe.models.systems.image_text.blip_2 import Blip2
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import text
from vlpipe.stages.evaluate.captions import Captions
from vlpipe.stages.evaluate.nearest import Relevance, both_ways
from vlpipe.stages.evaluate.retrieval import Retrieval
from vlpipe.stages.evaluate.written.shuffled_captions import ShuffledCaptions, moved_on
from vlpipe.stages.evaluate.written.words_of_images import WordsOfImages
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter.itm import ItmFilter

Rows = Callable[..., pa.Table]
SAID = ["a red circle", "two dogs", "a small star above the left square", "the green triangle on the right"]


@pytest.fixture(scope="module")
def blip_2(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A random first stage, scaled up so that images differ."""
    path = tmp_path_factory.mktemp("blip_2")
    tokenizer = Tokenizer.train(SAID * 5, 120)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "vision_width": 32, "vision_layers": 1}
    sizes |= {"vision_heads": 2, "vision_mlp": 64, "queries": 3, "width": 32, "layers": 2, "heads": 2}
    sizes |= {"max_text_length": 24, "embed_dim": 8, "init_std": 0.3}
    folder.save(Blip2.from_spec(sizes, tokenizer), path)
    tokenizer.save(path / "tokenizer")
    return Weights(path=str(path), digest="weights-digest")


def table_of(image_rows: Rows) -> pa.Table:
    return image_rows([[text("no human", "web"), text(SAID[i % 4], "human")] for i in range(6)])


def test_each_key_gets_the_value_before() -> None:
    assert list(moved_on([(1, "a"), (2, "b"), (3, "c")])) == [(2, "a"), (3, "b"), (1, "c")]
    assert list(moved_on([(1, "a")])) == [(1, "a")]
    assert list(moved_on([])) == []


def test_captions_are_those_of_the_image_before(blip_2: Weights, image_rows: Rows, tmp_path: Path) -> None:
    found = []
    for cls in (Captions, ShuffledCaptions):
        stage = cls(model=blip_2, num_beams=1, max_length=8, batch_size=4)
        rows = dataset(tmp_path / cls.__name__, table_of(image_rows), shard_rows=4)
        out = run_gather(stage, [rows], tmp_path / f"{cls.__name__}_run")
        found.append(json.loads((out.artifacts / "captions.json").read_text())["captions"])
    own = {one["id"]: one["caption"] for one in found[0]}
    assert len(set(own.values())) > 3
    other = {one["id"]: one["caption"] for one in found[1]}
    assert other == {f"row{i}": own[f"row{(i - 1) % 6}"] for i in range(6)}
    assert [one["references"] for one in found[1]] == [[SAID[i % 4]] for i in (1, 2, 3, 4, 5, 0)]


def test_words_of_images_are_those_of_a_loop(blip_2: Weights, image_rows: Rows, tmp_path: Path) -> None:
    table = table_of(image_rows)
    stage = WordsOfImages(model=blip_2, batch_size=4, max_text_length=12)
    out = run_gather(stage, [dataset(tmp_path / "rows", table, shard_rows=4)], tmp_path)
    got = {one["name"]: (one["value"], one["num_rows"]) for one in out.table.to_pylist()}
    model, tokenizer = folder.load(blip_2.path).eval(), Tokenizer.load(blip_2.path)
    pixels = [torch.from_numpy(load_pixels([data], 16)) for data in table["image"].to_pylist()]
    for partner, shift in (("true", 0), ("shuffled", -1)):
        nats, right, num = 0.0, 0, 0
        for i in range(6):
            ids, _ = tokenizer.encode_one(SAID[i % 4], 12)
            ids[0] = tokenizer.dec
            with torch.no_grad():
                cache = model.start_text(model.vision(pixels[(i + shift) % 6]), 12)
                odds = model.predict(model.step_text(torch.tensor([ids[:-1]]), cache)[0]).log_softmax(-1)
            nats -= float(odds.gather(1, torch.tensor(ids[1:])[:, None]).sum())
            right += int((odds.argmax(1) == torch.tensor(ids[1:])).sum())
            num += len(ids) - 1
        assert got[f"nats/{partner}"] == (pytest.approx(nats / num, rel=1e-4), num)
        assert got[f"top1/{partner}"] == (pytest.approx(right / num), num)


def test_the_nearest_embedding_of_an_image_counts() -> None:
    draw = np.random.default_rng(0)
    images, texts = (draw.normal(size=s).astype(np.float32) for s in ((7, 3, 4), (9, 4)))
    sims = np.einsum("iqd,td->iqt", images, texts).max(1)
    for block in (1, 1 << 20):
        of_images, of_texts = both_ways(images, texts, 4, Relevance(np.arange(9) % 7), block)
        assert (of_images.order == np.argsort(-sims, 1)[:, :4]).all()
        assert (of_texts.order == np.argsort(-sims.T, 1)[:, :4]).all()
        np.testing.assert_allclose(of_images.scores, -np.sort(-sims, 1)[:, :4], rtol=1e-5)


def test_stages_take_the_first_stage(blip_2: Weights, image_rows: Rows, tmp_path: Path) -> None:
    """Retrieval by its best query and matching, filtering, captions, embeddings."""
    table = table_of(image_rows)
    stage = Retrieval(model=blip_2, k_test=10, batch_size=4, max_text_length=12)
    out = run_gather(stage, [dataset(tmp_path / "rows", table)], tmp_path)
    found = {one["name"]: one["value"] for one in out.table.to_pylist()}
    model, tokenizer = folder.load(blip_2.path).eval(), Tokenizer.load(blip_2.path)
    ids, mask = tokenizer.encode([SAID[i % 4] for i in range(6)], 12)
    pixels = torch.from_numpy(load_pixels(table["image"].to_pylist(), 16))
    out_ = outputs(model, image=Stream(pixels), text=Stream(ids, mask.bool()))
    with torch.no_grad():
        sims = (out_.image_feats @ out_.text_feat.t()).amax(1)
    tr = (sims.argmax(1) == torch.arange(6)).float().mean()
    assert found["itc_tr@1"] == pytest.approx(float(tr))
    scores = run_map(ItmFilter(model=blip_2, batch_size=4, max_text_length=12), table).table
    assert all(0 < ts[0]["score"] < 1 for ts in scores["texts"].to_pylist())
    captions = run_map(Caption(model=blip_2, batch_size=4, max_length=6), table).table["texts"].to_pylist()
    assert all(ts[-1]["source"] == "synth" for ts in captions)
    vectors = run_map(Embed(model=blip_2, dim=8, batch_size=4), table).table
    name = next(n for n in vectors.schema.names if n not in ("id", "texts", "image"))
    assert np.linalg.norm(np.stack(vectors[name].to_pylist()), axis=1) == pytest.approx(np.ones(6), abs=1e-5)
