"""Masks and boxes of pictures: made scenes, readers, scores by hand, and training steps that learn to segment and detect."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.demo.broken import bomb_png
from vlpipe.stages.demo.downstream.dense import DenseWorld
from vlpipe.stages.demo.scenes import GROUNDS, SHAPES, SIZE_PX, draw_scene, mask_of, render
from vlpipe.stages.downstream.dense.masks import Masks
from vlpipe.stages.downstream.dense.scores import (
    BoxScores,
    SegmentationScores,
    confusion,
    decoded,
    segmentation,
)
from vlpipe.stages.ground_truth.boxes import TrueBoxes
from vlpipe.stages.lists.captions import CaptionsJsonl
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.downstream.pixel_classes import pixel_classes
from vlpipe.stages.loading.makers.downstream.true_boxes import TrueBoxes as TrueBoxesMaker
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.train import Train


def test_a_mask_says_where_the_picture_is_not_the_background() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, 0.5)
        mask = np.asarray(mask_of(scene, copy.deepcopy(rng)))
        pixels = np.asarray(render(scene, rng)).astype(float)
        assert set(np.unique(mask)) == {1, *(2 + SHAPES.index(thing.shape) for thing in scene.things)}
        far = np.abs(pixels - np.array(GROUNDS[scene.ground])).max(2) > 45  # noise and light are weaker
        assert (far == (mask > 1)).mean() > 0.97
        for thing in scene.things:
            rows, columns = np.nonzero(mask == 2 + SHAPES.index(thing.shape))
            assert abs((columns.min() + columns.max() + 1) / 2 / SIZE_PX - thing.x - thing.w / 2) < 0.05
            assert abs((rows.min() + rows.max() + 1) / 2 / SIZE_PX - thing.y - thing.h / 2) < 0.07


def test_mean_iou_by_hand() -> None:
    """Class 0: 3 pixels, 2 found, 1 more called so; class 1: 2 pixels, 1 found, 1 more; class 2 does not occur."""
    true = np.array([[0, 0, 0, 1], [1, IGNORE, IGNORE, IGNORE]])
    found = np.array([[0, 0, 1, 0], [1, 0, 1, 2]])
    rows = {row["name"]: row for row in segmentation(confusion(true, found, 3))}
    assert {name: row["value"] for name, row in rows.items()} == {
        "miou": pytest.approx((2 / 4 + 1 / 3) / 2),
        "iou/0": 2 / 4,
        "iou/1": pytest.approx(1 / 3),
        "pixel_accuracy": 3 / 5,
    }
    assert (rows["miou"]["num_rows"], rows["iou/0"]["num_rows"], rows["pixel_accuracy"]["num_rows"]) == (
        2,
        3,
        5,
    )


def png(values: list[list[int]], mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8)).convert(mode).save(file, "PNG")
    return file.getvalue()


def test_classes_of_pixels_are_read_without_interpolation() -> None:
    found = pixel_classes(png([[0, 1], [3, 2]]), 4, 3, "r")
    assert found.tolist() == [[IGNORE, IGNORE, 0, 0]] * 2 + [[2, 2, 1, 1]] * 2
    with pytest.raises(VlpipeError, match="row r: the mask has class 2, wanted below num_classes 2"):
        pixel_classes(png([[0, 1], [3, 2]]), 4, 2, "r")
    with pytest.raises(VlpipeError, match="row r: the mask has mode RGB"):
        pixel_classes(png([[0]], "RGB"), 4, 2, "r")
    with pytest.raises(VlpipeError, match="row r: the mask is not a readable PNG"):
        pixel_classes(b"no", 4, 2, "r")
    other = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(other, "BMP")
    for data in (other.getvalue(), bomb_png()):  # of an untrusted folder: one format, and of a size to decode
        with pytest.raises(VlpipeError, match="row r: the mask is not a readable PNG"):
            pixel_classes(data, 4, 2, "r")


def test_boxes_are_fractions_with_the_places_of_their_labels() -> None:
    objects = [{"box": [10.0, 5, 20, 25], "label": "dog", "attributes": []}]
    columns = {"objects": pa.scalar(objects, OBJECTS), "width": 40, "height": 50}
    row = Row("r", 0, ["a dog"], columns)
    maker, rng = TrueBoxesMaker(classes=["cat", "dog"]), np.random.default_rng(0)
    item = maker(row, "", rng)
    np.testing.assert_allclose(item["data"], [[0.25, 0.1, 0.5, 0.5]])
    assert item["extra/label"].tolist() == [1]
    with pytest.raises(
        VlpipeError, match=r"row r has an object 'dog', which is not in streams\.boxes\.classes: cat"
    ):
        TrueBoxesMaker(classes=["cat"])(row, "", rng)


def test_of_boxes_that_overlap_the_surest_stays() -> None:
    """2 x 2 patches: the first three say nearly the same box, of class 0, 0 and 1; the last one is sure of nothing."""
    box = {0: [0.25, 0.25, 0.25, 0.25], 1: [0.74, 0.25, -0.25, 0.25], 2: [0.25, 0.74, 0.25, -0.25]}
    found = np.full((4, 6), -9.0, np.float32)
    for patch, (label, score) in enumerate(((0, 1.0), (0, 2.0), (1, 0.0))):
        found[patch, label], found[patch, 2:] = score, box[patch]
    boxes, scores, labels = decoded(found, 0.3, 10)
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(scores, [1 / (1 + np.exp(-2)), 0.5], rtol=1e-5)
    np.testing.assert_allclose(boxes, [[0.01, 0, 0.5, 0.5], [0, 0.01, 0.5, 0.5]], atol=1e-6)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("scenes")
    made = run_gather(DenseWorld(num_train=48, num_eval=1, two_things=0.0), [], folder).artifacts
    source = CaptionsJsonl(
        captions=ListFile(path=str(made / "train.jsonl")), images=File(path=str(made / "images"))
    )
    table = run_map(source, pa.concat_tables(source.rows())).table
    table = run_map(Masks(masks=File(path=str(made / "masks"))), table).table
    return run_map(TrueBoxes(truth=File(path=str(made / "truth.parquet"))), table).table


def test_a_row_without_a_mask_is_rejected(scenes: pa.Table, tmp_path: Path) -> None:
    name = scenes["url"][3].as_py().replace(".jpg", ".png")
    (tmp_path / name).write_bytes(scenes["mask"][3].as_py())
    found = run_map(Masks(masks=File(path=str(tmp_path))), scenes.drop(["mask"]))
    assert found.table["mask"].to_pylist() == [scenes["mask"][3].as_py()]
    assert {one.why for one in found.rejects} == {"no_file"}
    assert len(found.rejects) == 47
    with pytest.raises(VlpipeError, match="`masks` must be a folder"):
        run_map(Masks(masks=File(path=str(tmp_path / "nowhere"))), scenes.drop(["mask"]))


BASE: dict[str, Any] = {
    "use": "mae:Mae",
    "image_size": 32,
    "patch_size": 4,
    "width": 48,
    "layers": 2,
    "heads": 4,
    "decoder_width": 16,
    "decoder_layers": 1,
    "decoder_heads": 2,
}
SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "steps": 120,
    "lr": 3e-3,
    "warmup_steps": 5,
    "loader_threads": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_training_step_learns(task: str, scenes: pa.Table, tmp_path: Path) -> None:
    segments = task == "segment"
    head = {
        "use": f"vlpipe.models.downstream.dense:{'Segmenter' if segments else 'PatchDetector'}",
        "base": BASE,
    }
    train = Train(
        model={**head, "num_classes": 6 if segments else 5},
        objectives=[f"downstream.dense:{'Segment' if segments else 'DetectPatches'}"],  # type: ignore[list-item]
        streams={} if segments else {"boxes": {"classes": list(SHAPES)}},
        **SETTINGS,
    )
    rows = dataset(tmp_path / "rows", scenes)
    trained = Weights(path=str(run_gather(train, [rows], tmp_path / "train").artifacts))
    stage = SegmentationScores(model=trained) if segments else BoxScores(model=trained, classes=SHAPES)
    found = {r["name"]: r["value"] for r in run_gather(stage, [rows], tmp_path / "scores").table.to_pylist()}
    if segments:
        assert found["iou/0"] > 0.9
        assert 0.2 < found["miou"] <= 1  # of the background alone: 0.15
    else:
        assert found["recall50"] > 0.5
        assert 0 < found["ap"] <= found["ap50"] <= 1
