"""VLMo's three stages as training steps, each from the one before: what the second leaves as it is, and two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file

from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.train.train import Train

MODEL: dict[str, Any] = {
    "use": "vlmo:Vlmo",
    "stage": "images",
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "layers": 2,
    "vl_layers": 1,
    "heads": 2,
    "max_text_length": 16,
    "num_codes": 7,
    "dropout": 0.0,
    "drop_path": 0.0,
}
SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "steps": 3,
    "lr": 1e-2,
    "weight_decay": 0.1,
    "loader_threads": 1,
}
MASKED = {"mlm": ["mask_text:MaskText"]}
HIDDEN = {"mim": [{"use": "mask_blocks:MaskBlocks", "patch": 8, "min_patches": 1}]}
LANGUAGE = ("words.", "word_head.", "blocks.0.experts.text.", "blocks.1.experts.text.")


@pytest.fixture
def coded(squares: Dataset, make_rows: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> Dataset:
    """The squares with codes that are their row's number modulo 7."""
    rows = [{**row, "image_codes": [k % 7] * 4} for k, row in enumerate(make_rows())]
    schema = squares.schema.append(pa.field("image_codes", pa.list_(pa.int32())))
    return dataset(tmp_path / "coded", pa.Table.from_pylist(rows, schema), name="coded")


def test_each_stage_trains_its_part_and_the_next_goes_on(
    coded: Dataset, recipe_of: Callable[..., Train], tmp_path: Path
) -> None:
    tokenizer: File = recipe_of().tokenizer  # type: ignore[assignment]
    mim = {"use": "images.masked_codes:MaskedImageCodes", "view": "mim"}
    mlm = {"use": "masked_lm:MaskedLm", "view": "mlm"}
    images = Train(model=MODEL, tokenizer=tokenizer, views=HIDDEN, objectives=[mim], **SETTINGS)
    assert images.preflight() == []
    first = run_gather(images, [coded], tmp_path / "images")
    texts = Train(
        init=Weights(path=first.artifacts),
        model={"stage": "texts"},
        train=[f"{name}*" for name in LANGUAGE],
        views=MASKED,
        objectives=[mlm],
        **SETTINGS,
    )
    second = run_gather(texts, [coded], tmp_path / "texts")
    pairs = Train(
        init=Weights(path=second.artifacts),
        model={"stage": "pairs"},
        views=MASKED,
        objectives=[
            "pairs.expert_itc:ExpertItc",
            {"use": "itm:Itm", "all_ranks": True},
            {**mlm, "weight": 0.25},
        ],
        **SETTINGS,
    )
    third = run_gather(pairs, [coded], tmp_path / "pairs")
    old, new, last = (load_file(f"{one.artifacts}/model.safetensors") for one in (first, second, third))
    changed = {name for name in old if not old[name].equal(new[name])}
    assert changed
    assert all(name.startswith(LANGUAGE) for name in changed)
    assert {n for n in old if n.startswith(LANGUAGE) and "weight" in n and "positions" not in n} <= changed
    moved = {name for name in new if not new[name].equal(last[name])}
    assert {"temp", "vl_temp", "patch.weight", "blocks.1.experts.both.up.weight"} <= moved
    assert not {"mask_token", "code_head.bias"} & moved
    assert {row["name"] for row in third.table.to_pylist()} >= {"itc", "itm", "mlm", "temp", "vl_temp"}
