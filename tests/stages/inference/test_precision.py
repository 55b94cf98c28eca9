from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlpipe.models.build import find
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, Matches
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.errors import VlpipeError, WorkflowError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.common.model import Loaded, load
from vlpipe.stages.common.row import text
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter.itm import ItmFilter
from vlpipe.stages.inference.precision import dtype_of, placed

Rows = Callable[..., pa.Table]
TEXT = """
steps:
  images: {use: "lists.captions:CaptionsJsonl", captions: PICTURES/list.jsonl, images: PICTURES}
  embed: {use: "features.embed:Embed", from: images, model: MODEL, dim: 8, batch_size: 16}
"""


def keys(tmp_path: Path, weights: Weights, *sets: str) -> tuple[str, str, object]:
    """(step key, stage key, precision) of the step `embed`."""
    pictures = tmp_path / "pictures"
    pictures.mkdir(exist_ok=True)
    (pictures / "list.jsonl").write_text('{"file": "a.jpg", "captions": ["a dog"]}\n')
    file = tmp_path / "w.yaml"
    file.write_text(TEXT.replace("MODEL", weights.path).replace("PICTURES", str(pictures)))
    loaded = Workflow.load(str(file), sets=[f"embed.{one}" for one in sets], root=str(tmp_path / "root"))
    one = plan(loaded, Store(str(tmp_path / "root")))[-1]
    assert one.keyed.step.params["precision"] == one.keyed.step.stage.precision  # type: ignore[attr-defined]
    return one.keyed.step_key, one.keyed.stage_key, one.keyed.step.params["precision"]


def test_the_key_tells_which_precision_made_the_rows(tmp_path: Path, weights: Weights) -> None:
    cpu = keys(tmp_path, weights)
    assert cpu[2] == "fp32"
    assert keys(tmp_path, weights, "precision=fp32") == cpu
    assert keys(tmp_path, weights, "precision=fp32", "resources.gpus=1") == cpu
    gpu = keys(tmp_path, weights, "resources.gpus=1")
    assert gpu[2] == "bf16"
    assert gpu[:2] != cpu[:2]
    assert keys(tmp_path, weights, "resources.gpus=0.5") == gpu
    assert keys(tmp_path, weights, "precision=bf16") == gpu
    for sets in (("decode_workers=7",), ("resources.cpus=4",), ("decode_workers=0", "resources.cpus=2")):
        assert keys(tmp_path, weights, *sets) == cpu
    with pytest.raises(WorkflowError, match=r"precision: wanted 'auto', 'fp32' or 'bf16'"):
        keys(tmp_path, weights, "precision=fp16")
    with pytest.raises(WorkflowError, match="decode_workers must be at least 0"):
        keys(tmp_path, weights, "decode_workers=-1")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_their_name(
    tmp_path: Path, weights: Weights, value: float
) -> None:
    """They gave rows of NaN, or an index error."""
    shutil.copytree(weights.path, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    name = sorted(n for n, t in tensors.items() if t.ndim > 1)[3]
    tensors[name].view(-1)[1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(VlpipeError, match=f"not all finite in fp32: {re.escape(name)} has NaN or inf"):
        load(replace(weights, path=str(tmp_path / "model")))


def test_decode_workers_follow_the_cpus(weights: Weights) -> None:
    stage = Embed(model=weights)
    found = [stage.with_resources(cpus, 0).decode_workers for cpus in (0, 0.5, 1, 6)]
    assert found == [1, 1, 1, 6]
    assert replace(stage, decode_workers=0).with_resources(6, 0).decode_workers == 0
    assert Embed().with_resources(1, 1).precision == "fp32"  # without a model


def test_auto_outside_a_run_is_that_of_the_device() -> None:
    assert dtype_of("auto", torch.device("cpu")) == torch.float32
    assert dtype_of("auto", torch.device("cuda")) == torch.bfloat16
    assert dtype_of("fp32", torch.device("cuda")) == torch.float32


def test_weights_are_cast_once_and_norms_stay_fp32(weights: Weights) -> None:
    model = load(weights, precision="bf16")
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    pixels = torch.randn(16, 3, 16, 16)
    found, wanted = model.embed_images(pixels), load(weights).embed_images(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(16))
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_bf16_rows_are_near_those_of_fp32(weights: Weights, image_rows: Rows) -> None:
    table = image_rows([[text("two red dogs", "web"), text("a small star", "web")] for _ in range(20)])

    def scores(precision: str) -> np.ndarray:
        stage = ItmFilter(model=weights, batch_size=16, max_text_length=20, precision=precision)  # type: ignore[arg-type]
        return np.array([t["score"] for ts in run_map(stage, table).table["texts"].to_pylist() for t in ts])

    exact, rounded = scores("fp32"), scores("bf16")
    assert (exact != rounded).any()
    assert np.abs(exact - rounded).max() < 0.15
    assert np.corrcoef(exact, rounded)[0, 1] > 0.99
    stage = Caption(model=weights, batch_size=16, precision="bf16")
    first, again = (run_map(stage, table).table for _ in range(2))
    assert first.equals(again)
    assert all(ts[-1]["text"] for ts in first["texts"].to_pylist())


SMALL_CLIP = {
    "vocab_size": 50,
    "end": 1,
    "image_size": 32,
    "text_width": 32,
    "text_layers": 1,
    "text_heads": 2,
}
SMALL_CLIP |= {"max_text_length": 12, "embed_dim": 16}
SYSTEMS: dict[str, dict[str, Any]] = {
    "clip:Clip": {**SMALL_CLIP, "patch_size": 8, "vision_width": 32, "vision_layers": 2, "vision_heads": 2},
    "clip:Clip ": {**SMALL_CLIP, "vision_width": 8, "vision_layers": [1, 1, 1, 1], "vision_heads": 4},
    "mae:Mae": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2, "decoder_layers": 1},
    "vilt:Vilt": {"vocab_size": 50, "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_with_pictures_computes_in_bf16(name: str) -> None:
    torch.manual_seed(0)
    made = find(name.strip(), "vlpipe.models.systems")(**SYSTEMS[name])
    here = torch.device("cpu")
    exact = Loaded(placed(copy.deepcopy(made), "fp32", here), None, here)  # type: ignore[arg-type]
    half = Loaded(placed(made, "bf16", here), None, here, torch.bfloat16)  # type: ignore[arg-type]
    pixels, ids = torch.randn(16, 3, 32, 32), torch.randint(2, 50, (16, 8))
    mask = torch.ones_like(ids)

    def near(one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)

    if exact.can(EmbedsImages):
        near(half.embed_images(pixels), exact.embed_images(pixels))
        assert half.embed_images(pixels).dtype == torch.float32
    if exact.can(EmbedsTexts):
        near(half.embed_texts(ids, mask), exact.embed_texts(ids, mask))
    if exact.can(Matches):
        near(
            half.match(ids, mask, half.encode_images(pixels)),
            exact.match(ids, mask, exact.encode_images(pixels)),
        )
