"""Region records: what a row holds, that its neighbours do not matter, and arrays there and back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.detection.layouts import to_detectron2
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import is_heavy
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.detector import load, save_names
from vlpipe.stages.common.region_rows import group_rows, image_arrays, region_type, regions_array
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.regions.regions import RegionFeatures

CLASSES, ATTRIBUTES = ("cat", "dog", "tree"), ("red", "small")
SMALL = DetectorConfig(
    num_classes=3,
    num_attributes=2,
    depths=(1, 1, 1, 1),
    width=4,
    rpn_width=8,
    anchor_sizes=(16, 32, 48, 64),
    pool_size=4,
    proposals=30,
    short_side=48,
    long_side=80,
)
SIZES = [(64, 48), (48, 64), (120, 40), (33, 57)]


def photo(seed: int, size: tuple[int, int]) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def rows() -> Callable[..., pa.Table]:
    def make(num: int, broken: tuple[int, ...] = ()) -> pa.Table:
        found: list[dict[str, Any]] = []
        for k in range(num):
            width, height = SIZES[k % 4]
            data = b"\x89PNG\r\n\x1a\nno" if k in broken else photo(k, (width, height))
            found.append(
                {"id": f"row{k}", "url": "", "texts": [], "width": width, "height": height, "image": data}
            )
        return pa.Table.from_pylist(found, pa.schema([*LISTED, *IMAGE_FIELDS]))

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = FasterRcnn(SMALL)
    for layer, std in ((model.head.classes, 1.0), (model.head.boxes, 0.05), (model.rpn.objectness, 0.3)):
        torch.nn.init.normal_(layer.weight, std=std)
    path = tmp_path_factory.mktemp("detector")
    model.save(path)
    save_names(path, CLASSES, ATTRIBUTES)
    return path


def stage(folder: Path, **more: Any) -> RegionFeatures:
    small = {"feat_dim": 128, "num_classes": 3, "min_regions": 5, "max_regions": 12}
    return RegionFeatures(**{"detector": Weights(path=str(folder)), **small, **more})


def test_a_region_record(folder: Path, rows: Callable[..., pa.Table]) -> None:
    step = stage(folder)
    out = run_map(step, rows(4, broken=(2,)))
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("row2", "fault", "truncated")]
    schema = step.schema(rows(1).schema)
    assert [is_heavy(schema.field(n)) for n in ("regions", "region_tags", "regions_weights")] == [
        True,
        False,
        False,
    ]
    assert schema.field("regions").type == pa.list_(region_type(128, 4))
    detector = load(str(folder))
    assert out.table["regions_weights"].to_pylist() == [detector.digest] * 3
    for row in out.table.to_pylist():
        found = row["regions"]
        assert 5 <= len(found) <= 12
        for one in found:
            x1, y1, x2, y2 = one["box"]
            assert 0 <= x1 < x2 <= row["width"] + 1e-3
            assert 0 <= y1 < y2 <= row["height"] + 1e-3
            assert one["obj"] == int(np.argmax(one["prob"][:3]))
            assert one["obj_conf"] == pytest.approx(float(one["prob"][one["obj"]]), abs=1e-3)
            assert sum(map(float, one["prob"])) == pytest.approx(1, abs=4e-3)
            assert one["attr"] in (0, 1)
        best = sorted((one for one in found if one["obj_conf"] >= 0.2), key=lambda one: -one["obj_conf"])
        assert row["region_tags"] == [CLASSES[one["obj"]] for one in best]


def test_boxes_are_in_pixels_of_the_shown_image(folder: Path, rows: Callable[..., pa.Table]) -> None:
    """The same picture at twice the size: what the detector sees after resizing is the same, so boxes double."""
    image = Image.open(io.BytesIO(photo(0, (64, 48))))
    out = io.BytesIO()
    image.resize((128, 96), Image.Resampling.NEAREST).save(out, "PNG")
    detector = load(str(folder))
    for size in ((64, 48), (128, 96)):
        _, scale = detector.pixels(image.resize(size))
        assert scale == (size[0] / 64, size[1] / 48)
    table = rows(1)
    one = image_arrays(run_map(stage(folder), table).table["regions"].combine_chunks())[0]
    pixels, _ = detector.pixels(image)
    torch.testing.assert_close(
        torch.from_numpy(one["box"].copy())[:1], detector.model.regions(pixels).box[:1]
    )


def test_a_row_does_not_depend_on_its_neighbours(folder: Path, rows: Callable[..., pa.Table]) -> None:
    table = rows(6)
    together = run_map(stage(folder), table).table
    for k in range(6):
        alone = run_map(stage(folder), table.slice(k, 1)).table
        assert alone.equals(together.slice(k, 1))


def test_the_digest_is_of_the_weights_not_of_the_file(folder: Path, tmp_path: Path) -> None:
    detector = load(str(folder))
    theirs = {to_detectron2(name): value for name, value in detector.model.state_dict().items()}
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        VlpipeError,
        match=r"there is no file .*objects_vocab\.txt; it must contain the names of the model's 3 classes",
    ):
        load(str(tmp_path))
    (tmp_path / "objects_vocab.txt").write_text("Cat,kit\u2028ten\nDog\nTree\n")  # U+2028 ends no line
    (tmp_path / "attributes_vocab.txt").write_text("red\n")
    with pytest.raises(
        VlpipeError, match=r"has 2 classes or attributes, .*attributes_vocab\.txt has 1 lines"
    ):
        load(str(tmp_path))
    (tmp_path / "attributes_vocab.txt").write_text("red\nsmall\n")
    public = load(str(tmp_path))
    assert (public.classes, public.attributes) == (CLASSES, ATTRIBUTES)
    assert public.digest != detector.digest  # another pooling and image size: other features
    assert load(str(tmp_path)).digest == public.digest


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(VlpipeError, match="the detector has feat_dim 128, but the step sets feat_dim: 64"),
        stage(folder, feat_dim=64).open(),
    ):
        pass
    with pytest.raises(
        VlpipeError,
        match=r"must contain model\.safetensors, pytorch_model\.bin or one \*\.pkl; it contains nothing",
    ):
        load(str(tmp_path))
    assert stage(folder, min_regions=20).preflight() == [
        "min_regions must be at most max_regions = 12, got 20"
    ]


def test_row_groups_are_about_32_mb() -> None:
    rows_of = group_rows(2048, 1601, 100)
    one = regions_array([arrays(100, 2048, 1601)], 2048, 1601)
    assert 30 << 20 < rows_of * one.nbytes < 33 << 20
    assert group_rows(2048, 1601, 36) > 2.7 * rows_of
    assert RegionFeatures(detector=Weights(path="x")).ROW_GROUP_ROWS == rows_of == 45


def arrays(num: int, feat_dim: int, num_probs: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "feat": rng.random((num, feat_dim)).astype(np.float16),
        "box": rng.random((num, 4)).astype(np.float32),
        "prob": rng.random((num, num_probs)).astype(np.float16),
        "obj": rng.integers(0, 9, num).astype(np.int16),
        "obj_conf": rng.random(num).astype(np.float32),
        "attr": rng.integers(-1, 9, num).astype(np.int16),
        "attr_conf": rng.random(num).astype(np.float32),
    }


def test_arrays_there_and_back() -> None:
    images = [arrays(num, 8, 3, seed=num) for num in (3, 0, 5)]
    column = regions_array(images, 8, 3)
    for part, wanted in ((column, images), (column.slice(1), images[1:]), (column.slice(0, 1), images[:1])):
        back = image_arrays(part)
        assert len(back) == len(wanted)
        for found, one in zip(back, wanted, strict=True):
            assert all(
                np.array_equal(found[name], one[name]) and found[name].dtype == one[name].dtype
                for name in one
            )
