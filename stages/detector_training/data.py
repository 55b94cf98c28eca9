"""Training data of a detector: images with ground-truth boxes, in the order of `loading.order`, and label names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from vlpipe.models.detection.faster_rcnn import FasterRcnn, pad
from vlpipe.models.detection.matching import Target
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.shard import open_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.detector import to_pixels
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.detector_training.recipe import DetectorRecipe
from vlpipe.stages.loading.batches.ahead import ahead
from vlpipe.stages.loading.batches.make_batch import SAMPLE
from vlpipe.stages.loading.order import Order, Sample, Share
from vlpipe.stages.loading.rows import Unit, joined_values, scan
from vlpipe.stages.train.loader import NUM_AHEAD, Making

CPU = torch.device("cpu")
COLUMNS = ("image", "objects")  # read of each row


@dataclass(frozen=True)
class Vocabulary:
    """Names of the classes and attributes that a detector can predict, by index."""

    classes: tuple[str, ...]
    attributes: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Sequence[Dataset], max_classes: int, max_attributes: int) -> Vocabulary:
        """Returns the `max_classes` most frequent labels and `max_attributes` attributes of all objects (ties: by name).

        Raises VlpipeError if no row has an object.
        """
        labels: Counter[str] = Counter()
        attributes: Counter[str] = Counter()
        for data in inputs:
            for table in data.batches(["objects"]):
                for one in table["objects"].combine_chunks().flatten().to_pylist():
                    labels[one["label"]] += 1
                    attributes.update(one["attributes"] or ())
        if not labels:
            raise VlpipeError(
                "detector_training.train: no row has an object to train on: column `objects` is empty everywhere"
            )
        return cls(_most(labels, max_classes), _most(attributes, max_attributes))


def _most(counts: Counter[str], num: int) -> tuple[str, ...]:
    return tuple(sorted(sorted(counts), key=lambda name: -counts[name])[:num])


@dataclass(frozen=True, slots=True)
class Images:
    """A micro-batch of B images: `pixels` (B, 3, H, W) float32, padded with zeros at the lower right; `sizes`, B times
    (height, width) before padding; `targets`, B `Target`s."""

    pixels: torch.Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]

    def to(self, device: torch.device) -> Images:
        """Returns the images with pixels on `device`; targets stay where they are."""
        return Images(self.pixels.to(device, non_blocking=True), self.sizes, self.targets)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One encoded image and its ground-truth objects."""

    id: str
    image: bytes
    objects: list[dict[str, Any]]


class DetectorLoader:
    """Indexes all images of the inputs and makes the batches of each rank. The step number determines a batch's images."""

    def __init__(
        self,
        inputs: Sequence[Dataset],
        recipe: DetectorRecipe,
        model: FasterRcnn,
        words: Vocabulary,
        flip: bool,
    ) -> None:
        self.recipe, self.model, self.flip = recipe, model, flip
        self._label = {name: k for k, name in enumerate(words.classes)}
        self._attribute = {name: k for k, name in enumerate(words.attributes)}
        self.units: list[Unit] = []
        shares, sizes = [], []
        for data in inputs:
            found = scan(data, "rows", COLUMNS)
            self.units += found.units
            sizes += found.sizes
            shares.append(Share.of(found.counts, 1.0))
        limits = {"window": recipe.shuffle_window, "window_bytes": recipe.window_bytes}
        self.order = Order(shares, seed=recipe.seed, sizes=sizes, **limits)
        self.samples_per_epoch = self.order.samples_per_epoch
        self.making = Making()

    @contextmanager
    def batches(
        self, step: int, rank: int = 0, world_size: int = 1, device: torch.device = CPU
    ) -> Iterator[Iterator[Images]]:
        """Context manager that yields an endless iterator of micro-batches, starting at optimiser step `step`.

        device: where they go next; for a GPU, `pixels` is in pinned memory.
        """
        with (
            ThreadPoolExecutor(self.recipe.loader_threads, thread_name_prefix="decode") as pool,
            ahead(self._batches(step, rank, world_size, pool, device.type == "cuda"), NUM_AHEAD) as batches,
        ):
            yield batches

    def _batches(
        self, step: int, rank: int, world_size: int, pool: ThreadPoolExecutor, pin: bool
    ) -> Iterator[Images]:
        per_step = self.recipe.batch_size // world_size
        samples = self._samples(self.order.of_rank(rank, world_size, skip=step * per_step))
        while True:
            made = list(pool.map(self._made, islice(samples, per_step // self.recipe.accumulate)))
            pixels, sizes = pad([image for image, _ in made])
            pixels = pixels.pin_memory() if pin else pixels
            yield Images(pixels, sizes, [target for _, target in made])

    def _samples(self, windows: Iterator[list[Sample]]) -> Iterator[tuple[Sample, Labelled]]:
        """Yields each sample with its image; a window is in memory, and the one before until it is read."""
        rows: Mapping[int, list[Labelled]] = {}
        for window in windows:
            needed = sorted({sample.unit for sample in window})
            rows = {unit: rows.get(unit) or read_unit(self.units[unit]) for unit in needed}
            for sample in window:
                yield sample, rows[sample.unit][sample.index]

    def _made(self, found: tuple[Sample, Labelled]) -> tuple[torch.Tensor, Target]:
        sample, row = found
        try:
            image = decode(row.image)
        except RowFault as fault:
            raise VlpipeError(
                f"training: the image of row {row.id} cannot be decoded ({fault}); "
                "add a step before training that rejects such rows"
            ) from fault
        pixels, (across, down) = to_pixels(self.model, image, CPU)
        target = self._target(row, torch.tensor([across, down, across, down]))
        rng = np.random.default_rng((self.recipe.seed, SAMPLE, sample.epoch, sample.place))
        if self.flip and rng.random() < 0.5:
            return pixels.flip(2), flipped(target, pixels.shape[2])
        return pixels, target

    def _target(self, row: Labelled, scale: torch.Tensor) -> Target:
        """Returns the row's objects with a class of the vocabulary and a non-empty box, in pixels of the resized image.

        scale: (4,), pixels of the image per pixel of the resized one: x, y, x, y. An object keeps the first `max_attributes`
        of its attributes that are in the vocabulary.
        """
        max_attributes = self.model.config.max_attributes
        known = [
            one
            for one in row.objects
            if one["label"] in self._label and one["box"][2] > one["box"][0] and one["box"][3] > one["box"][1]
        ]
        boxes = torch.tensor([one["box"] for one in known], dtype=torch.float32).reshape(-1, 4) / scale
        attributes = torch.full((len(known), max_attributes), -1)
        for k, one in enumerate(known):
            indices = [self._attribute[a] for a in one["attributes"] or () if a in self._attribute][
                :max_attributes
            ]
            attributes[k, : len(indices)] = torch.tensor(indices, dtype=torch.long)
        labels = torch.tensor([self._label[one["label"]] for one in known], dtype=torch.long)
        return Target(boxes, labels, attributes)


def flipped(target: Target, width: int) -> Target:
    """Returns the target with its boxes mirrored left to right. width: of the image, in pixels."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    return Target(torch.stack([width - x2, y1, width - x1, y2], dim=1), target.labels, target.attributes)


def read_unit(unit: Unit) -> list[Labelled]:
    """Returns a row group's images and objects; images are joined by id if another shard stores them."""
    holder = unit.shard.holder("image")
    joined = holder.path != unit.shard.path
    columns = ["id", "objects", *([] if joined else ["image"])]
    with open_shard(unit.store, unit.shard) as file:
        table = file.read_row_group(unit.group, columns=columns)
    ids = table["id"].to_pylist()
    images = joined_values(unit.store, holder, "image", ids) if joined else table["image"].to_pylist()
    objects = [found or [] for found in table["objects"].to_pylist()]
    return [Labelled(*one) for one in zip(ids, images, objects, strict=True)]
