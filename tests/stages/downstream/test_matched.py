"""Retrieval by a matching head: ranks against all scores at once, pairs of one picture, tags of the image, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import text
from vlpipe.stages.downstream.matched import MatchRetrieval, figures

Rows = Callable[..., pa.Table]
SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "max_text_length": 12,
}
CAPTIONS = [["a red dog", "dog"], ["a star"], ["two dogs", "red", "a big star"], ["a cat"], ["one cat"]]


@pytest.fixture
def model(tmp_path: Path) -> Weights:
    tokenizer = Tokenizer.train([word for several in CAPTIONS for word in several] * 3, 80)
    torch.manual_seed(0)
    folder.save(Vilt(vocab_size=tokenizer.vocab_size, init_std=0.5, **SIZES), tmp_path / "vilt")
    tokenizer.save(tmp_path / "vilt" / "tokenizer")
    return Weights(path=str(tmp_path / "vilt"))


def all_scores(weights: Weights, images: list[bytes], texts: list[str]) -> np.ndarray:
    """Scores (I, T), each pair alone."""
    model, tokenizer = folder.load(weights.path).eval(), Tokenizer.load(weights.path)
    found = np.zeros((len(images), len(texts)), np.float32)
    for i, image in enumerate(images):
        pixels = Stream(torch.from_numpy(load_pixels([image], 16)))
        for k, one in enumerate(texts):
            ids, mask = tokenizer.encode([one], 12)
            out = Outputs(
                model, Batch({"image": pixels, "text": Stream(ids, mask.bool())}, torch.zeros(1)), grad=False
            )
            with torch.inference_mode():
                no, yes = out.match[0].tolist()
            found[i, k] = yes - no
    return found


def test_ranks_are_those_of_all_scores(model: Weights, image_rows: Rows, tmp_path: Path) -> None:
    table = image_rows([[text(words, "human") for words in several] for several in CAPTIONS])
    texts = [words for several in CAPTIONS for words in several]
    owner = np.repeat(np.arange(5), [len(several) for several in CAPTIONS])
    scores = all_scores(model, table["image"].to_pylist(), texts)
    tr = [1 + (scores[i, owner != i] >= scores[i, owner == i].max()).sum() for i in range(5)]
    ir = [1 + (np.delete(scores[:, k], owner[k]) >= scores[owner[k], k]).sum() for k in range(len(texts))]
    assert len(set(tr)) > 1
    for size in (3, 256):
        data = dataset(tmp_path / f"rows{size}", table, shard_rows=2)
        out = run_gather(MatchRetrieval(model=model, batch_size=size), [data], tmp_path / str(size))
        found = {row["name"]: (row["value"], row["num_rows"]) for row in out.table.to_pylist()}
        for name, ranks in (("tr", np.array(tr)), ("ir", np.array(ir))):
            for k in (1, 5, 10):
                assert found[f"{name}@{k}"] == (pytest.approx((ranks <= k).mean()), len(ranks))
            assert found[f"{name}_medr"] == (np.median(ranks), len(ranks))
    items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    hits = {one["item"]: one["value"] for one in items if one["metric"] == "ir@1"}
    assert hits == {
        f"row{owner[k]}#{k - list(owner).index(owner[k])}": float(ir[k] == 1) for k in range(len(texts))
    }


def test_figures_of_ranks_worked_by_hand() -> None:
    found = {row["name"]: row["value"] for row in figures("tr", np.array([1, 2, 5, 6, 11, 1]))}
    assert found == {"tr@1": 2 / 6, "tr@5": 4 / 6, "tr@10": 5 / 6, "tr_medr": 3.5}


def test_a_head_that_knows_nothing_is_last(
    model: Weights, image_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores are equal, or no numbers: ties count against the right one."""
    table = image_rows([[text(several[0], "human")] for several in CAPTIONS])
    for value in (0.0, float("nan")):
        monkeypatch.setattr(Vilt, "match", lambda self, out, v=value: torch.full((len(out.batch), 2), v))
        out = run_gather(
            MatchRetrieval(model=model), [dataset(tmp_path / f"r{value}", table)], tmp_path / str(value)
        )
        found = {row["name"]: row["value"] for row in out.table.to_pylist()}
        assert (found["tr@1"], found["ir@1"], found["tr_medr"], found["ir_medr"]) == (0, 0, 5, 5)


def test_one_picture_is_refused(model: Weights, image_rows: Rows, tmp_path: Path) -> None:
    data = dataset(tmp_path / "rows", image_rows([[text("a dog", "human"), text("dog", "human")]]))
    with pytest.raises(VlpipeError, match="wanted texts of two images or more, got 1"):
        run_gather(MatchRetrieval(model=model), [data], tmp_path)
