from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import RESULTS, text
from vlpipe.stages.evaluate.captions import Captions

Rows = Callable[..., pa.Table]


def by_hand(weights: Weights, table: pa.Table, num_beams: int) -> list[str]:
    """One image at a time."""
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    found = []
    for data in table["image"].to_pylist():
        tokens = model.encode_image(torch.from_numpy(load_pixels([data], 16)))
        if num_beams == 1:
            ids = sample(model, tokens, min_length=1, max_length=6)
        else:
            ids = beam(model, tokens, num_beams=num_beams, min_length=1, max_length=6)
        found.append(tokenizer.decode(ids[0]))
    return found


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_models_own_captions_as_references_score_full_marks(
    weights: Weights, image_rows: Rows, tmp_path: Path, num_beams: int
) -> None:
    bare = image_rows([[]] * 20)
    own = by_hand(weights, bare, num_beams)
    table = image_rows([[text(c, "human"), text("a web text", "web")] for c in own])
    stage = Captions(model=weights, num_beams=num_beams, max_length=6, batch_size=16)
    said: list[str] = []
    out = run_gather(stage, [dataset(tmp_path / "rows", table, shard_rows=7)], tmp_path, said.append)
    assert out.table.schema == RESULTS
    found = {r["name"]: (r["value"], r["num_rows"]) for r in out.table.to_pylist()}
    assert found["bleu@4"] == (pytest.approx(1, abs=1e-6), 20)
    assert 5 < found["cider"][0] <= 10
    assert said == ["20 captions scored, tokenizer ptb_like"]
    written = json.loads((out.artifacts / "captions.json").read_text())
    assert [c["caption"] for c in written["captions"]] == own
    assert written["tokenizer"] == "ptb_like"
    items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    assert [(one["metric"], one["item"], one["row"]) for one in items] == [
        ("cider", f"row{i}", f"row{i}") for i in range(20)
    ]
    assert np.mean([one["value"] for one in items]) == pytest.approx(found["cider"][0])
    assert written["captions"][3] == {"id": "row3", "caption": own[3], "references": [own[3]]}


def test_one_image_is_refused(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    data = dataset(tmp_path / "rows", image_rows([[text("a dog", "human")]]))
    with pytest.raises(VlpipeError, match="CIDEr needs at least 2 images"):
        run_gather(Captions(model=weights, batch_size=16), [data], tmp_path)


def test_unreadable_images_are_named(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    images = [*image_rows([[]] * 3)["image"].to_pylist(), b""]
    data = dataset(
        tmp_path / "rows", image_rows([[text(w, "human")] for w in ("a dog", "a star", "two", "a")], images)
    )
    out = run_gather(Captions(model=weights, batch_size=16), [data], tmp_path)
    assert [(r.id, r.why) for r in out.rejects] == [("row3", "empty")]
    assert out.table["num_rows"].to_pylist() == [3, 3]


def test_a_missing_package_names_the_pip_line(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpipe.stages.evaluate.caption_scores.find_spec", lambda name: None)
    assert Captions(model=weights).preflight() == [
        "caption scores need pycocoevalcap: pip install 'vlpipe[eval]'"
    ]
