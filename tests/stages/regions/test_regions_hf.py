"""Regions from transformers' detectors: against the model called by hand, and its own post-processing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
)

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.regions.hf_detectors import HFRegionFeatures, class_probs

SMALL = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
LABELS = dict(enumerate(("cat", "dog", "tree", "car", "cup")))


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(**SMALL, out_features=["stage4"]),
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        d_model=32,
        num_queries=20,
        id2label=LABELS,
    )
    path = tmp_path_factory.mktemp("detr")
    DetrForObjectDetection(config).save_pretrained(path)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 100}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            **SMALL, out_features=["stage2", "stage3", "stage4"], layer_type="basic"
        ),
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[32, 32, 32],
        **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        d_model=32,
        encoder_hidden_dim=32,
        decoder_layers=1,
        num_queries=20,
        id2label=LABELS,
    )
    path = tmp_path_factory.mktemp("rt_detr")
    RTDetrForObjectDetection(config).save_pretrained(path)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


def rows() -> pa.Table:
    found = []
    for k, (width, height) in enumerate(((80, 60), (50, 90))):
        out = io.BytesIO()
        noise = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(out, "PNG")
        found.append({"id": f"row{k}", "width": width, "height": height, "image": out.getvalue()})
    return pa.Table.from_pylist(found, pa.schema([*LISTED, *IMAGE_FIELDS]))


def stage(folder: Path, **more: float) -> HFRegionFeatures:
    sizes = {"feat_dim": 32, "num_classes": 5, "min_regions": 6, "max_regions": 9, "tag_confidence": 0.0}
    return HFRegionFeatures(model=Weights(path=str(folder)), **{**sizes, **more})


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_regions_are_the_models_likeliest_queries(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    classes = (DetrForObjectDetection, DetrImageProcessorPil) if name == "detr" else (
        RTDetrForObjectDetection,
        RTDetrImageProcessorPil,
    )  # fmt: skip
    model, processor = classes[0].from_pretrained(folder).eval(), classes[1].from_pretrained(folder)
    table = rows()
    out = run_map(stage(folder), table).table
    assert len(set(out["regions_weights"].to_pylist())) == 1
    for row in out.to_pylist():
        image = Image.open(io.BytesIO(table["image"][int(row["id"][-1])].as_py()))
        with torch.no_grad():
            known = model(**processor(images=image, return_tensors="pt"))
        size = torch.tensor([[image.height, image.width]])
        wanted = processor.post_process_object_detection(known, threshold=0.0, target_sizes=size)[0]
        assert 6 <= len(row["regions"]) <= 9
        for one in row["regions"]:
            query = (
                (known.last_hidden_state[0] - torch.tensor(one["feat"], dtype=torch.float32))
                .abs()
                .sum(1)
                .argmin()
            )
            torch.testing.assert_close(
                torch.tensor(one["feat"], dtype=torch.float32),
                known.last_hidden_state[0, query],
                atol=2e-3,
                rtol=2e-3,
            )
            boxes = wanted["boxes"].clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2))
            near = (boxes - torch.tensor(one["box"])).abs().amax(1) < 0.05
            assert near.any()
            assert ((wanted["scores"][near] - one["obj_conf"]).abs() < 1e-4).any()
            assert one["attr"] == -1
        assert row["region_tags"] == [LABELS[one["obj"]] for one in row["regions"]]
        assert [one["obj_conf"] for one in row["regions"]] == sorted(
            (one["obj_conf"] for one in row["regions"]), reverse=True
        )


def test_a_row_does_not_depend_on_its_neighbours(detr: Path) -> None:
    together = run_map(stage(detr), rows()).table
    assert run_map(stage(detr), rows().slice(1)).table.equals(together.slice(1))


def test_probabilities() -> None:
    logits = torch.tensor([[0.0, 0, 0]])
    torch.testing.assert_close(class_probs(logits, 2), torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(class_probs(logits, 3), torch.full((1, 4), 0.5))
    with pytest.raises(VlpipeError, match="the model gives 3 logits for 7 labels"):
        class_probs(logits, 7)


def test_sizes_are_checked(detr: Path) -> None:
    with pytest.raises(
        VlpipeError, match="the detector has num_classes 5, but the step sets num_classes: 91"
    ):
        run_map(stage(detr, num_classes=91), rows())
