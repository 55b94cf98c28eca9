"""The rows of steps as batches of streams, each text once: what scores of finetuned models are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row, read_unit, scan

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.batch import Batch, Stream
    from vlpipe.stages.common.model import Loaded

KEPT = ("text", "answer", "choices")  # streams that stay when a row gets the images of another


class Example(NamedTuple):
    """A row, one of its texts, and the place of the text among them."""

    row: Row
    text: str
    number: int

    @property
    def item(self) -> str:
        """The name of the example: unique in a step's output."""
        return f"{self.row.id}#{self.number}"


def makers_of(loaded: Loaded, streams: Mapping[str, Mapping[str, Any]]) -> dict[str, Maker]:
    """Returns the makers of the streams of a model. streams: their parameters, as in `train.train`."""
    from vlpipe.stages.train.build import build_makers
    from vlpipe.stages.train.recipe import Recipe

    recipe = Recipe(objectives=[], streams={name: dict(one) for name, one in streams.items()})
    return build_makers(recipe, loaded.model, loaded.tokenizer)


def examples(inputs: Sequence[Dataset], columns: Sequence[str]) -> Iterator[Example]:
    """Yields all rows that have usable texts, once with each."""
    for data in inputs:
        for unit in scan(data, "pairs", columns).units:
            for row in read_unit(unit, columns):
                for number, text in enumerate(row.texts):
                    yield Example(row, text, number)


def batches(
    loaded: Loaded, inputs: Sequence[Dataset], makers: Mapping[str, Maker], size: int
) -> Iterator[tuple[list[Example], Batch]]:
    """Yields examples with their batch on the model's device, `size` at a time, the last one shorter."""
    from vlpipe.stages.common.model import batch_of

    columns = tuple(dict.fromkeys(name for maker in makers.values() for name in maker.COLUMNS))
    left = examples(inputs, columns)
    while found := list(islice(left, size)):
        items = {name: items_of(maker, found) for name, maker in makers.items()}
        yield found, batch_of({name: stream_of(maker, items[name], loaded) for name, maker in makers.items()})


def items_of(maker: Maker, found: Sequence[Example]) -> list[Item]:
    """Returns what a maker makes of examples."""
    rng = np.random.default_rng(0)  # nothing is drawn from it without augmentation
    return [maker(one.row, one.text, rng) for one in found]


def stream_of(maker: Maker, items: Sequence[Item], loaded: Loaded) -> Stream:
    """Returns the stream of a maker's items, on the model's device and in its floating-point type."""
    stream = maker.collate(items)
    moved = maker.on_device(stream.map(lambda value: value.to(loaded.device)))
    return moved.map(lambda value: value.to(loaded.dtype) if value.is_floating_point() else value)


def swapped(found: Sequence[Example], batch: Batch) -> tuple[Batch, list[int]]:
    """Returns the batch in which each row has the images of the next row of another picture, and the rows that have one."""
    import torch

    partners = [_partner(found, place) for place in range(len(found))]
    index: Tensor = torch.tensor(
        [place if other is None else other for place, other in enumerate(partners)], device=batch.same.device
    )
    changed = batch.map_streams(lambda name, stream: stream if name in KEPT else stream.rows(index))
    return changed, [place for place, other in enumerate(partners) if other is not None]


def _partner(found: Sequence[Example], place: int) -> int | None:
    own = found[place].row.image_id
    after = (k % len(found) for k in range(place + 1, place + len(found)))
    return next((k for k in after if found[k].row.image_id != own), None)
