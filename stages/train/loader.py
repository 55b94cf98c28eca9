"""Makes the training batches of one rank, prefetched. The step number alone determines a batch's samples."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.loading.batches.ahead import ahead
from vlpipe.stages.loading.batches.make_batch import BatchMaker, Samples, Views, sample_rng
from vlpipe.stages.loading.batches.processes import made_in_processes, num_processes
from vlpipe.stages.loading.batches.to_device import to_device
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.order import Order, Part, Sample, Share, by_length, cuts
from vlpipe.stages.loading.rows import Row, RowCache, Rows, Unit, scan
from vlpipe.stages.train.recipe import Recipe, mix_weight

if TYPE_CHECKING:
    import torch

    from vlpipe.models.interface.batch import Batch

Chosen = tuple[Sample, Row, str]  # a sample with its row and text

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
        if recipe.copies and not any(recipe.copies in data.schema.names for data in inputs):
            raise VlpipeError(f"copies: no input of this step has a column {recipe.copies!r}")
        self.recipe, self.tokenizer = recipe, tokenizer
        task_streams = {name: task.streams for name, task in recipe.tasks.items()}
        self.make = BatchMaker(recipe.seed, makers, views or {}, task_views or {}, task_streams)
        self.columns = tuple(dict.fromkeys(c for maker in makers.values() for c in maker.COLUMNS))
        self.per = recipe.texts if any(maker.NEEDS_TEXT for maker in makers.values()) else "rows"
        self.units: list[Unit] = []
        shares, sizes = [], []
        for data in inputs:
            found = scan(data, self.per, self.columns, recipe.copies)
            self.units += found.units
            sizes += found.sizes
            shares.append(Share.of(found.counts, mix_weight(recipe.mix, data.name)))
        limits = {"window": recipe.shuffle_window, "window_bytes": recipe.window_bytes}
        self.order = Order(shares, seed=recipe.seed, sizes=sizes, **limits)
        self.making = Making()

    @property
    def samples_per_epoch(self) -> int:
        return self.order.samples_per_epoch

    @contextmanager
    def batches(
        self,
        step: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        streams: int | None = None,
    ) -> Iterator[Iterator[Batch]]:
        """Context manager that yields an endless iterator of micro-batches, starting at optimiser step `step`.

        device: where they are; None: the CPU. At most NUM_AHEAD are prefetched, and PER_PROCESS in each loader process.
        streams: how many workers' rows a step has; None: those of as many as now. Raises VlpipeError with `balance_tokens`,
        if they are other than now.
        """
        import torch

        device = device or torch.device("cpu")
        on_gpu = device.type == "cuda"
        if streams not in (None, world_size) and self.recipe.balance_tokens:
            raise VlpipeError(
                f"balance_tokens: a step has the rows of {streams} workers, whose batches differ in size; train with as many"
            )
        num = num_processes(self.recipe.loader_processes, gpu=on_gpu)
        with closing(self._samples_of(step, rank, world_size, streams or world_size)) as samples:
            made = (
                made_in_processes(samples, self.make, num, pin=on_gpu)
                if num
                else self._made_in_threads(samples, pin=on_gpu)
            )
            with closing(made), ahead(self.making.counted(made, num or 1), NUM_AHEAD) as found:
                yield to_device(found, device, self.make.to_device, self.make.on_device)

    def _made_in_threads(self, samples: Iterator[Samples], *, pin: bool) -> Generator[tuple[Batch, float]]:
        """Yields (batch, seconds that it took)."""
        num = self.recipe.loader_threads
        with ThreadPoolExecutor(num, thread_name_prefix="decode") as pool:
            for found in samples:
                began = time.perf_counter()
                batch = self.make(found, pool, num)
                seconds = time.perf_counter() - began
                yield batch.pin_memory() if pin else batch, seconds

    def _samples_of(self, step: int, rank: int, world_size: int, streams: int) -> Generator[Samples]:
        """Yields the samples of each micro-batch of a rank: its share of those of all streams beside each other."""
        from vlpipe.models.interface.batch import Step

        recipe = self.recipe
        size = recipe.batch_size // (streams * recipe.accumulate)  # of a micro-batch of one stream
        # what is taken of all streams at a time: a micro-batch of each, or a step, in micro-batches of their own
        num = recipe.accumulate if recipe.micro_batches == recipe.accumulate else 1
        own, each = recipe.batch_size // (world_size * num), recipe.accumulate // num
        together = recipe.micro_batches // num
        long = size * each
        numbers = range(rank * own // long, ((rank + 1) * own - 1) // long + 1)
        cuts = [slice(max(rank * own - i * long, 0), (rank + 1) * own - i * long) for i in numbers]
        with ExitStack() as stack:
            found = []
            for i in numbers:
                bytes_each = recipe.cache_bytes // len(numbers)
                cache = RowCache(
                    self.units, bytes_each, recipe.loader_threads, self.columns, self.per != "rows"
                )
                stack.enter_context(closing(cache))
                parts = self.order.parts_of_rank(i, streams, skip=step * size * recipe.accumulate)
                found.append(self._pieces(cache, parts, size))
            while True:
                progress = step * recipe.batch_size / self.samples_per_epoch
                for micro in range(recipe.micro_batches):
                    if micro % together == 0:
                        # of a rank's own stream all, however many: with `balance_tokens` their number varies
                        pieces = [
                            [c for _ in range(each) for c in next(f)][
                                slice(None) if streams == world_size else cut
                            ]
                            for f, cut in zip(found, cuts, strict=True)
                        ]
                        rows = [c for piece in pieces for c in piece]
                    first, most = micro % together * len(rows) // together, len(rows) // together
                    yield Samples(
                        rows[first : first + most], Step(step, micro, progress), recipe.task_of(step)
                    )
                step += 1

    def _pieces(self, cache: RowCache, parts: Iterator[Part], size: int) -> Iterator[list[Chosen]]:
        """Yields the samples of each micro-batch of `size`, with their rows and texts.

        The next window is read while the current one is used.
        """
        part = next(parts)
        cache.want(self._units(part))
        batch: list[Chosen] = []
        for following in parts:
            cache.want(self._units(following), keep=self._units(part))
            done = 0
            for num, piece in zip(cuts(part, size), self._ordered(part, cache, size), strict=True):
                done += num
                if num and done > part.skip:
                    batch += [(sample, *self._pick(sample, cache[sample.unit])) for sample in piece]
                    if (part.position + done) % size == 0:
                        yield batch
                        batch = []
            part = following

    def _units(self, part: Part) -> list[int]:
        """Returns the row groups that a part of a window needs."""
        grouped = self.recipe.group_by_length  # then the samples before a resume count, too
        return sorted({sample.unit for sample in part.samples[0 if grouped else part.skip :]})

    def _ordered(self, part: Part, cache: RowCache, size: int) -> list[list[Sample]]:
        """Returns the pieces of a part (see `cuts`) in the order of training. size: of a micro-batch."""
        if not self.recipe.group_by_length:
            ends = np.cumsum(cuts(part, size)).tolist()
            return [part.samples[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        lengths = []
        for sample in part.samples:
            row, text = self._pick(sample, cache[sample.unit])
            counts = (
                maker.count_positions(row, text)
                if self.recipe.balance_tokens
                else maker.num_positions(row, text)
                for maker in self.make.makers.values()
            )
            lengths.append(sum(counts))
        return by_length(part, lengths, size, self.recipe.seed, self.recipe.balance_tokens)

    def _pick(self, sample: Sample, rows: Rows) -> tuple[Row, str]:
        if self.per == "pairs":
            return rows.pair(sample.index)
        row = rows[sample.index]
        if self.per == "rows":
            return row, ""
        pick = sample_rng(self.recipe.seed, sample, PICK_TEXT).integers(len(row.texts))
        return row, row.texts[int(pick)]


class Making:
    """How fast batches are made, from the times of those made so far."""

    def __init__(self) -> None:
        self._samples = self._seconds = 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples per second that the loader's threads or processes can make; 0 before the first batch."""
        return self._samples / self._seconds if self._seconds else 0.0

    def counted(self, made: Iterator[tuple[Batch, float]], num: int) -> Iterator[Batch]:
        """Yields the batches of `made`, of which `num` are made at a time."""
        for batch, seconds in made:
            self._samples += len(batch)
            self._seconds += seconds / num
            yield batch
