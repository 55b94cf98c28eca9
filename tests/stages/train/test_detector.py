"""Training a detector: killed and resumed it gives the same bytes; micro-batches add up; its data is what it says."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.video.resnet import ResNet
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.detector import load
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.detector_training.data import DetectorLoader, Vocabulary, flipped, read_unit
from vlpipe.stages.detector_training.fit import prepare
from vlpipe.stages.detector_training.train import TrainDetector
from vlpipe.stages.train import fit as fit_module
from vlpipe.stages.train.fit import train_step

SCHEMA = pa.schema([("id", pa.string()), ("objects", OBJECTS), heavy("image", pa.binary())])
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30)}
MODEL: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "width": 8,
    "norm": "batch",
    "head_stride": 2,
    "pool": "align",
    "pool_size": 4,
    "rpn_width": 16,
    "anchor_sizes": [20],
    "aspect_ratios": [1],
    "pixel_mean": [127.5, 127.5, 127.5],
    "pixel_std": [64, 64, 64],
    "short_side": 64,
    "long_side": 96,
    "proposals": 10,
    "train_proposals_before": 20,
    "train_proposals": 10,
    "rpn_samples": 8,
    "roi_samples": 8,
}


def row(k: int) -> dict[str, Any]:
    """A coloured box, tall ("pole") or wide ("plank"), somewhere on grey."""
    rng = np.random.default_rng(k)
    colour, label = list(COLOURS)[k % 2], ("Pole, tall", "plank")[k // 2 % 2]
    width, height = (10, 24) if label != "plank" else (24, 10)
    x, y = int(rng.integers(0, 64 - width)), int(rng.integers(0, 64 - height))
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    image.paste(COLOURS[colour], (x, y, x + width, y + height))
    out = io.BytesIO()
    image.save(out, "PNG")
    one = {"box": [x, y, x + width, y + height], "label": label, "attributes": [colour]}
    return {"id": f"row{k}", "objects": [one], "image": out.getvalue()}


@pytest.fixture
def poles(tmp_path: Path) -> Dataset:
    return dataset(
        tmp_path, pa.Table.from_pylist([row(k) for k in range(24)], SCHEMA), "poles", shard_rows=10
    )


def recipe(**more: Any) -> TrainDetector:
    small = {
        "steps": 6,
        "batch_size": 4,
        "lr": 2e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "loader_threads": 1,
    }
    return TrainDetector(**{"model": MODEL, **small, **more})


def test_killed_and_resumed_it_ends_the_same(
    poles: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run_gather(recipe(), [poles], tmp_path / "calm", say=lambda _: None)
    with monkeypatch.context() as patch:

        def dies(run: Any, batches: Any) -> None:
            if run.step == 5:
                raise KeyboardInterrupt
            train_step(run, batches)

        patch.setattr(fit_module, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_gather(recipe(), [poles], tmp_path / "killed", say=lambda _: None)
    assert sorted(p.name for p in (tmp_path / "killed" / "work" / "checkpoints").iterdir()) == [
        "000000002.pt",
        "000000004.pt",
    ]
    said: list[str] = []
    again = run_gather(recipe(), [poles], tmp_path / "killed", say=said.append)
    assert [line.split()[1] for line in said] == ["5/6", "6/6"]
    assert again.table.equals(calm.table)
    files = {"model.safetensors", "config.json", "objects_vocab.txt", "attributes_vocab.txt"}
    assert {path.name for path in again.artifacts.iterdir()} == files
    for name in files:
        assert (again.artifacts / name).read_bytes() == (calm.artifacts / name).read_bytes(), name
    assert {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_attributes", "loss", "lr"} <= set(
        calm.table["name"].to_pylist()
    )
    detector = load(str(calm.artifacts))
    assert (detector.classes, detector.attributes) == (("Pole, tall", "plank"), ("green", "red"))


def test_loss_is_the_weighted_sum(poles: Dataset, tmp_path: Path) -> None:
    weights = {"rpn_box": 3.0, "roi_attributes": 0.0}
    out = run_gather(recipe(steps=1, loss_weights=weights), [poles], tmp_path / "one", say=lambda _: None)
    found = dict(zip(out.table["name"].to_pylist(), out.table["value"].to_pylist(), strict=True))
    wanted = found["rpn_objectness"] + 3 * found["rpn_box"] + found["roi_class"] + found["roi_box"]
    assert found["loss"] == pytest.approx(wanted, rel=1e-6)


def test_it_goes_on_from_another_detector(poles: Dataset, tmp_path: Path) -> None:
    first = run_gather(recipe(steps=2), [poles], tmp_path / "first", say=lambda _: None)
    init = Weights(path=str(first.artifacts))
    second = recipe(model=None, init=init, freeze=["backbone.conv1", "backbone.layer1"], steps=2)
    out = run_gather(second, [poles], tmp_path / "second", say=lambda _: None)
    before, after = FasterRcnn.load(first.artifacts), FasterRcnn.load(out.artifacts)
    assert torch.equal(before.backbone.conv1.weight, after.backbone.conv1.weight)
    assert not torch.equal(before.head.classes.weight, after.head.classes.weight)
    with pytest.raises(VlpipeError, match="freeze: no parameter name starts with 'stem'"):
        prepare(recipe(freeze=["stem"]), [poles])


def test_it_starts_from_a_classifier(poles: Dataset, tmp_path: Path) -> None:
    resnet = ResNet(depths=(1, 1, 1, 1), width=8)
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    run, _ = prepare(recipe(init_resnet=File(path=str(tmp_path / "resnet.pth"))), [poles])
    model = run.net.model
    assert torch.equal(model.backbone.layer3[0].conv2.weight, resnet.layer3[0].conv2.weight)
    assert torch.equal(model.head.layer4[0].conv2.weight, resnet.layer4[0].conv2.weight)
    wider = recipe(init_resnet=File(path=str(tmp_path / "resnet.pth")), model={**MODEL, "width": 4})
    with pytest.raises(ValueError, match=r"init_resnet: \d+ weights are .* such as conv1\.weight"):
        prepare(wider, [poles])


def test_mistakes_are_said_before_the_run() -> None:
    assert recipe().preflight() == []
    wrong = recipe(
        model={"widht": 3}, loss_weights={"box": 2.0}, steps=None, init=Weights(path="x")
    ).preflight()
    assert [line[:60] for line in wrong] == [
        "set either `steps` or `epochs`; neither is set",
        "model and init_resnet are for a new detector, but `init` is ",
        "loss_weights: no loss is named 'box'; the losses are rpn_obj",
        "detector: no parameter 'widht'; there are anchor_sizes, aspe",
    ]


@pytest.fixture
def loader(poles: Dataset) -> Callable[..., DetectorLoader]:
    def make(flip: bool = False, **more: Any) -> DetectorLoader:
        run, words = prepare(recipe(**more), [poles])
        return DetectorLoader([poles], run.recipe, run.net.model, words, flip)

    return make


def test_boxes_follow_the_image(loader: Callable[..., DetectorLoader]) -> None:
    """In the pixels that are trained on, the true box is where the colour is: resized, and mirrored half of the time."""
    with loader(flip=True, model={**MODEL, "short_side": 96}).batches(0) as batches:
        for _ in range(4):
            batch = next(batches)
            assert batch.sizes == [(96, 96)] * 4
            for pixels, target in zip(batch.pixels, batch.targets, strict=True):
                grey = pixels.abs().amax(0) < 0.05  # the mean of 128
                y, x = (~grey).nonzero().T
                edges = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                assert (edges - target.boxes[0]).abs().max() <= 2
                assert (target.attributes[0] >= 0).sum() == 1


def test_a_step_number_is_the_loaders_state(loader: Callable[..., DetectorLoader]) -> None:
    with loader(flip=True).batches(0) as batches:
        first = [next(batches) for _ in range(9)]
    with loader(flip=True).batches(7) as batches:
        later = [next(batches) for _ in range(2)]
    for one, other in zip(first[7:], later, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.targets, other.targets, strict=True))
    seen = [batch.targets for batch in first[:6]]  # one epoch: 24 images
    assert len({tuple(t.boxes.flatten().tolist()) for targets in seen for t in targets}) > 16


def test_a_window_ends_with_the_row_group_that_reaches_its_bytes(
    poles: Dataset, loader: Callable[..., DetectorLoader]
) -> None:
    """Row groups of 10, 10 and 4 images, whose bytes Parquet states; joined and not, the counts are of images."""
    whole = loader().order
    assert [[sorted(w.units.tolist()) for w in whole.windows(k)] for k in range(3)] == [[[0, 1, 2]]] * 3
    sizes = [sum(len(row(k)["image"]) for k in range(a, b)) for a, b in ((0, 10), (10, 20), (20, 24))]
    bounded = loader(window_bytes=sizes[0]).order
    for number in range(6):
        windows = [w.units.tolist() for w in bounded.windows(number)]
        assert sorted(unit for window in windows for unit in window) == [0, 1, 2]
        assert all(sum(sizes[u] for u in window[:-1]) < sizes[0] for window in windows)
        assert len(windows) >= 2
    assert [[len(w.units) for w in loader(window_bytes=1).order.windows(k)] for k in range(3)] == [
        [1, 1, 1]
    ] * 3


def test_rows_in_memory_are_those_of_two_windows(
    loader: Callable[..., DetectorLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[weakref.ref[Any]] = []
    most = 0

    class Rows(list[Any]):
        """A list that can be referred to weakly."""

    def counted(unit: Any) -> Rows:
        nonlocal most
        found = Rows(read_unit(unit))
        read.append(weakref.ref(found))
        most = max(most, sum(one() is not None for one in read))
        return found

    monkeypatch.setattr("vlpipe.stages.detector_training.data.read_unit", counted)
    with loader(window_bytes=1).batches(0) as batches:
        for _ in range(30):
            next(batches)
    assert len(read) >= 10
    assert most == 2


def test_mirrored_boxes() -> None:
    from vlpipe.models.detection.matching import Target

    one = Target(torch.tensor([[1.0, 2, 5, 9]]), torch.tensor([0]), torch.tensor([[0]]))
    assert flipped(one, 20).boxes.tolist() == [[15, 2, 19, 9]]
    assert flipped(flipped(one, 20), 20).boxes.equal(one.boxes)


def test_words_are_the_most_frequent_ones(tmp_path: Path) -> None:
    def image(name: str, *labels: str) -> dict[str, Any]:
        objects = [{"box": [0, 0, 1, 1], "label": label, "attributes": [label[0]]} for label in labels]
        return {"id": name, "objects": objects, "image": b""}

    table = pa.Table.from_pylist([image("a", "dog", "cat", "cow"), image("b", "dog"), image("c")], SCHEMA)
    words = Vocabulary.of([dataset(tmp_path, table)], max_classes=2, max_attributes=1)
    assert words == Vocabulary(("dog", "cat"), ("c",))
    with pytest.raises(VlpipeError, match="no row has an object to train on"):
        Vocabulary.of([dataset(tmp_path / "none", table.slice(2))], 2, 1)
