"""Makes the training batches of one rank, prefetched in a thread. The step number alone determines a batch's samples."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.loading.corruptors.base import Corruptor
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.makers.base import Sample as Items
from vlpipe.stages.loading.order import Order, Sample, Share
from vlpipe.stages.loading.rows import Row, RowCache, Rows, Unit, scan
from vlpipe.stages.train.recipe import Recipe, mix_weight

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch, Stream

T = TypeVar("T")
Views = Mapping[str, Sequence[Corruptor]]  # view name -> its corruptors, in order
SAMPLE = 4  # seed constant of per-sample generators; distinct from those in `order`
PICK_TEXT = 0  # use of a generator; the uses of streams and corruptors are hashes of their names
NUM_AHEAD = 4  # max prefetched batches


class Loader:
    """Indexes all samples of the inputs and makes the batches of each rank.

    makers: stream name -> maker. views: view name -> corruptors, applied in order to copies of the samples. task_views: task
    -> names of the views that its batches have; others have all.
    Raises VlpipeError if `mix` names a step that is not an input, or if there are no samples.
    """

    def __init__(
        self,
        inputs: Sequence[Dataset],
        recipe: Recipe,
        tokenizer: Any,
        makers: Mapping[str, Maker],
        views: Views | None = None,
        task_views: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        names = [name for data in inputs for name in (data.name, data.name.partition("@")[0])]
        for name in recipe.mix:
            if name not in names:
                raise VlpipeError(f"mix: {name!r} is not an input of this step{did_you_mean(name, names)}")
        self.recipe, self.tokenizer, self.makers, self.views = recipe, tokenizer, makers, views or {}
        self.task_views = task_views or {}
        self.columns = tuple(dict.fromkeys(c for maker in makers.values() for c in maker.COLUMNS))
        self.per = recipe.texts if any(maker.NEEDS_TEXT for maker in makers.values()) else "rows"
        self.units: list[Unit] = []
        shares, sizes = [], []
        for data in inputs:
            found = scan(data, self.per, self.columns)
            self.units += found.units
            sizes += found.sizes
            shares.append(Share.of(found.counts, mix_weight(recipe.mix, data.name)))
        limits = {"window": recipe.shuffle_window, "window_bytes": recipe.window_bytes}
        self.order = Order(shares, seed=recipe.seed, sizes=sizes, **limits)

    @property
    def samples_per_epoch(self) -> int:
        return self.order.samples_per_epoch

    @contextmanager
    def batches(
        self, step: int, rank: int = 0, world_size: int = 1, *, pin: bool = False
    ) -> Iterator[Iterator[Batch]]:
        """Context manager that yields an endless iterator of micro-batches, starting at optimiser step `step`.

        pin: tensors are in pinned memory, for faster copies to a GPU.
        """
        cache = RowCache(
            self.units, self.recipe.cache_bytes, self.recipe.loader_threads, self.columns, self.per != "rows"
        )
        with (
            closing(cache),
            ThreadPoolExecutor(self.recipe.loader_threads, thread_name_prefix="decode") as pool,
            ahead(self._batches(step, rank, world_size, cache, pool, pin), NUM_AHEAD) as batches,
        ):
            yield batches

    def _batches(
        self, step: int, rank: int, world_size: int, cache: RowCache, pool: ThreadPoolExecutor, pin: bool
    ) -> Iterator[Batch]:
        from vlpipe.models.interface.batch import Step

        per_step = self.recipe.batch_size // world_size
        samples = self._samples(cache, self.order.of_rank(rank, world_size, skip=step * per_step))
        while True:
            task = self.recipe.task_of(step)
            for micro in range(self.recipe.accumulate):
                found = list(islice(samples, per_step // self.recipe.accumulate))
                progress = step * self.recipe.batch_size / self.samples_per_epoch
                batch = self._batch(found, pool, Step(step, micro, progress), task)
                yield batch.map(lambda value: value.pin_memory()) if pin else batch
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
        if self.per == "pairs":
            return rows.pair(sample.index)
        row = rows[sample.index]
        if self.per == "rows":
            return row, ""
        return row, row.texts[int(self._rng(sample, PICK_TEXT).integers(len(row.texts)))]

    def _batch(
        self, found: Sequence[tuple[Sample, Row, str]], pool: ThreadPoolExecutor, step: Any, task: str
    ) -> Batch:
        import torch

        from vlpipe.models.interface.batch import Batch

        made: list[Items] = [{} for _ in found]
        makers = self._makers_of(task)
        views = self.task_views.get(task, self.views)
        uses = {name: zlib.crc32(name.encode()) for name in makers}

        def fill(first: int) -> None:
            for at in range(first, len(found), self.recipe.loader_threads):
                sample, row, text = found[at]
                for name, maker in makers.items():
                    made[at][name] = maker(row, text, self._rng(sample, uses[name]))

        list(pool.map(fill, range(self.recipe.loader_threads)))
        return Batch(
            streams=self._collated(made, makers),
            same=torch.tensor([row.image_id for _, row, _ in found]),
            views={view: self._view(view, made, [sample for sample, _, _ in found]) for view in views},
            step=step,
            task=task,
        )

    def _makers_of(self, task: str) -> Mapping[str, Maker]:
        """Returns the makers of the streams of a task."""
        streams = self.recipe.tasks[task].streams if task else ()
        return {name: maker for name, maker in self.makers.items() if not streams or name in streams}

    def _view(self, view: str, made: Sequence[Items], samples: Sequence[Sample]) -> dict[str, Stream]:
        """Returns the streams that the corruptors of `view` replace, from copies of the samples `made`."""
        changed = [{name: dict(item) for name, item in items.items()} for items in made]
        for at, corruptor in enumerate(self.views[view]):
            use = zlib.crc32(f"{view}/{at}".encode())
            changed = corruptor(changed, partial(self._rng_of, samples, use), self.makers)
        different = [
            name
            for name in made[0]
            if any(not _same_item(new[name], old[name]) for new, old in zip(changed, made, strict=True))
        ]
        return self._collated(changed, different)

    def _collated(self, made: Sequence[Items], names: Sequence[str] | Mapping[str, Any]) -> dict[str, Stream]:
        return {name: self.makers[name].collate([items[name] for items in made]) for name in names}

    def _rng_of(self, samples: Sequence[Sample], use: int, k: int) -> np.random.Generator:
        return self._rng(samples[k], use)

    def _rng(self, sample: Sample, use: int) -> np.random.Generator:
        return np.random.default_rng((self.recipe.seed, SAMPLE, sample.epoch, sample.place, use))


def _same_item(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    return new.keys() == old.keys() and all(new[name] is old[name] for name in new)


def _units(samples: Sequence[Sample]) -> list[int]:
    return sorted({sample.unit for sample in samples})


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
