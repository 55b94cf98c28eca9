"""Makes the training batches of one rank, prefetched in a thread. The step number alone determines a batch's samples."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.loading.augment import crop_box, rand_augment
from vlpipe.stages.loading.order import Order, Sample, Share
from vlpipe.stages.loading.rows import Row, RowCache, Rows, Unit, scan
from vlpipe.stages.train.recipe import Augmentation, Recipe, mix_weight

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

T = TypeVar("T")
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
SAMPLE = 4  # seed constant of per-sample generators; distinct from those in `order`
NUM_AHEAD = 4  # max prefetched batches


class Loader:
    """Indexes all samples of the inputs and makes the batches of each rank.

    Raises VlpipeError if `mix` names a step that is not an input, or if there are no samples.
    """

    def __init__(
        self, inputs: Sequence[Dataset], recipe: Recipe, tokenizer: Tokenizer, image_size: int
    ) -> None:
        names = [name for data in inputs for name in (data.name, data.name.partition("@")[0])]
        for name in recipe.mix:
            if name not in names:
                raise VlpipeError(f"mix: {name!r} is not an input of this step{did_you_mean(name, names)}")
        self.recipe, self.tokenizer, self.image_size = recipe, tokenizer, image_size
        self.units: list[Unit] = []
        shares = []
        for data in inputs:
            units, counts = scan(data, recipe.texts)
            self.units += units
            shares.append(Share.of(counts, mix_weight(recipe.mix, data.name)))
        self.order = Order(shares, seed=recipe.seed, window=recipe.shuffle_window)

    @property
    def samples_per_epoch(self) -> int:
        return self.order.samples_per_epoch

    @contextmanager
    def batches(
        self, step: int, rank: int = 0, world_size: int = 1, *, pin: bool = False
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Context manager that yields an endless iterator of micro-batches, starting at optimiser step `step`.

        A micro-batch of B samples is a dict: `pixels` (B, 3, H, W) float32, `input_ids` and `attention_mask`
        (B, `max_text_length`) int64, `image_id` (B,) int64, `progress` (epochs completed, a float) and `micro` (its
        index within the step). pin: tensors are in pinned memory, for faster copies to a GPU.
        """
        cache = RowCache(self.units, self.recipe.cache_bytes, self.recipe.loader_threads)
        with (
            closing(cache),
            ThreadPoolExecutor(self.recipe.loader_threads, thread_name_prefix="decode") as pool,
            ahead(self._batches(step, rank, world_size, cache, pool, pin), NUM_AHEAD) as batches,
        ):
            yield batches

    def _batches(
        self, step: int, rank: int, world_size: int, cache: RowCache, pool: ThreadPoolExecutor, pin: bool
    ) -> Iterator[dict[str, Any]]:
        per_step = self.recipe.batch_size // world_size
        samples = self._samples(cache, self.order.of_rank(rank, world_size, skip=step * per_step))
        while True:
            for micro in range(self.recipe.accumulate):
                found = list(islice(samples, per_step // self.recipe.accumulate))
                progress = step * self.recipe.batch_size / self.samples_per_epoch
                tensors = self._batch(found, pool)
                if pin:
                    tensors = {name: value.pin_memory() for name, value in tensors.items()}
                yield tensors | {"progress": progress, "micro": micro}
            step += 1

    def _samples(self, cache: RowCache, windows: Iterator[list[Sample]]) -> Iterator[tuple[Sample, Row, str]]:
        """Yields each sample with its row and text; the next window is read while the current one is used."""
        window = next(windows)
        cache.want(_units(window))
        for next_window in windows:
            cache.want(_units(next_window), keep=_units(window))
            for sample in window:
                yield sample, *self._pick(sample, cache[sample.unit])
            window = next_window

    def _pick(self, sample: Sample, rows: Rows) -> tuple[Row, str]:
        if self.recipe.texts == "images":
            row = rows[sample.index]
            return row, row.texts[int(self._rng(sample, 0).integers(len(row.texts)))]
        return rows.pair(sample.index)

    def _batch(
        self, found: Sequence[tuple[Sample, Row, str]], pool: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        import torch

        pixels = np.empty((len(found), 3, self.image_size, self.image_size), np.float32)

        def fill(first: int) -> None:
            for at in range(first, len(found), self.recipe.loader_threads):
                sample, row, text = found[at]
                image = row.rgb()
                if self.recipe.augment is not None:
                    image = augmented(image, self.recipe.augment, self.image_size, text, self._rng(sample, 1))
                pixels[at] = to_pixels(image, self.image_size)

        list(pool.map(fill, range(self.recipe.loader_threads)))
        texts = [self.recipe.prompt + text for _, _, text in found]
        ids, mask = self.tokenizer.encode(texts, self.recipe.max_text_length)
        image_ids = torch.tensor([row.image_id for _, row, _ in found])
        return {
            "pixels": torch.from_numpy(pixels),
            "input_ids": ids,
            "attention_mask": mask,
            "image_id": image_ids,
        }

    def _rng(self, sample: Sample, use: int) -> np.random.Generator:
        return np.random.default_rng((self.recipe.seed, SAMPLE, sample.epoch, sample.place, use))


def _units(samples: Sequence[Sample]) -> list[int]:
    return sorted({sample.unit for sample in samples})


def augmented(image: Image, spec: Augmentation, size: int, text: str, rng: np.random.Generator) -> Image:
    """Returns a (size, size) image: random crop, horizontal flip unless `text` says left or right, RandAugment.

    `spec` selects which of the three are applied.
    """
    from PIL.Image import Resampling, Transpose

    if spec.crop_scale is not None:
        image = image.crop(crop_box(image.width, image.height, spec.crop_scale, rng))
    image = image.resize((size, size), Resampling.BICUBIC)
    if spec.flip and rng.random() < 0.5 and not SIDES.search(text):
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    if spec.randaugment is not None:
        image = rand_augment(image, *spec.randaugment, rng)
    return image


@contextmanager
def ahead(source: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Context manager that yields the items of the endless iterator `source`, which runs in a thread.

    At most `depth` items are prefetched. An exception raised in `source` is re-raised in the consumer.
    """
    items: queue.Queue[T | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | BaseException) -> None:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:
            put(error)

    def taken() -> Iterator[T]:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=produce, name="loader", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()
