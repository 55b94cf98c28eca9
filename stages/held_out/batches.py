"""Batches of held-out rows, made as in a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

from vlpipe.models.interface.batch import Batch
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.model import Loaded
from vlpipe.stages.train.build import build_makers, build_views
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.recipe import Recipe


@contextmanager
def held_out_batches(
    job: Job,
    loaded: Loaded,
    who: str,
    *,
    batch_size: int,
    streams: Mapping[str, Mapping[str, Any]],
    views: Mapping[str, Sequence[str | dict[str, Any]]] | None = None,
    texts: Literal["pairs", "images"] = "pairs",
    seed: int = 0,
) -> Iterator[Iterator[Batch]]:
    """Yields the whole batches of one pass over the inputs of `job`, on the model's device; a last, smaller one is left out.

    streams: parameters of makers; views: name -> corruptors; texts: what a sample is; all as in `train.train`. Samples and
    their order depend on `seed` alone. who: the stage, for messages. Raises VlpipeError if there is no whole batch, and
    ValueError for a stream that the model does not read.
    """
    recipe = Recipe(
        objectives=[],
        texts=texts,
        streams={name: dict(spec) for name, spec in streams.items()},
        views={name: list(corruptors) for name, corruptors in (views or {}).items()},
        batch_size=batch_size,
        seed=seed,
        shuffle_window=4 * batch_size,
    )
    makers = build_makers(recipe, loaded.model, loaded.tokenizer)
    loader = Loader(job.inputs, recipe, loaded.tokenizer, makers, build_views(recipe, makers))
    num = loader.samples_per_epoch // batch_size
    if not num:
        raise VlpipeError(f"{who}: {loader.samples_per_epoch} samples do not fill a batch of {batch_size}")
    with loader.batches(0, device=loaded.device) as batches:
        yield islice(batches, num)
