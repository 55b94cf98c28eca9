"""Makes a training batch from its samples. The same samples give the same batch in any thread or process."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlpipe.stages.loading.corruptors.base import Corruptor
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.makers.base import Sample as Items
from vlpipe.stages.loading.order import Sample
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    import torch

    from vlpipe.models.interface.batch import Batch, Step, Stream

Views = Mapping[str, Sequence[Corruptor]]  # view name -> its corruptors, in order
SAMPLE = 4  # seed constant of per-sample generators; distinct from those in `order`


@dataclass(frozen=True)
class Samples:
    """The samples of one micro-batch, each with its row and text; the batch's position in the run, and its task."""

    found: Sequence[tuple[Sample, Row, str]]
    step: Step
    task: str = ""


@dataclass(frozen=True)
class BatchMaker:
    """Maps `Samples` to a `Batch`. It can be pickled, for processes that make batches.

    makers: stream name -> maker. views: view name -> corruptors, applied in order to copies of the samples. task_views,
    task_streams: task -> names of the views and streams that its batches have; other tasks have all.
    """

    seed: int
    makers: Mapping[str, Maker]
    views: Views = field(default_factory=dict)
    task_views: Mapping[str, Collection[str]] = field(default_factory=dict)
    task_streams: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __call__(
        self, samples: Samples, pool: ThreadPoolExecutor | None = None, num_threads: int = 1
    ) -> Batch:
        """Returns the batch. pool: makes the samples in `num_threads` of its threads."""
        import torch

        from vlpipe.models.interface.batch import Batch

        found, task = samples.found, samples.task
        made: list[Items] = [{} for _ in found]
        streams = self.task_streams.get(task) or self.makers
        makers = {name: maker for name, maker in self.makers.items() if name in streams}
        uses = {name: zlib.crc32((maker.SHARES or name).encode()) for name, maker in makers.items()}

        def fill(first: int) -> None:
            for at in range(first, len(found), num_threads):
                sample, row, text = found[at]
                for name, maker in makers.items():
                    made[at][name] = maker(row, text, self._rng(sample, uses[name]))

        if pool is None:
            fill(0)
        else:
            list(pool.map(fill, range(num_threads)))
        return Batch(
            streams=self._collated(made, makers),
            same=torch.tensor([row.image_id for _, row, _ in found]),
            views={
                view: self._view(view, made, [sample for sample, _, _ in found])
                for view in self.task_views.get(task, self.views)
            },
            step=samples.step,
            task=task,
        )

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Returns the batch on the training device; see `Maker.to_device`."""
        found = batch.map_streams(lambda name, stream: self.makers[name].to_device(stream, device))
        return replace(found, same=batch.same.to(device, non_blocking=True))

    def on_device(self, batch: Batch) -> Batch:
        """Returns a batch that is on the training device now as models read it; see `Maker.on_device`."""
        return batch.map_streams(lambda name, stream: self.makers[name].on_device(stream))

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
        return sample_rng(self.seed, sample, use)


def sample_rng(seed: int, sample: Sample, use: int) -> np.random.Generator:
    """Returns the random generator of a sample for one use: a stream, a corruptor, or the choice of its text."""
    return np.random.default_rng((seed, SAMPLE, sample.epoch, sample.place, use))


def _same_item(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    return new.keys() == old.keys() and all(new[name] is old[name] for name in new)
