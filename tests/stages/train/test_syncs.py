"""A training step reads no value back from the device: on a GPU each such read waits for all that was computed before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.small_system import small_systems
from vlpipe.models.interface.batch import IGNORE, Batch, Stream, flat_places
from vlpipe.models.objectives.lm import NEXT, next_tokens
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.recipe import Recipe
from vlpipe.stages.train.run import Run

SYSTEMS = small_systems()
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
# VideoBERT cuts its sequences to the longest of the batch, whose length it asks for
ALLOWED = {"videobert": 1}


class Reads(TorchDispatchMode):
    """Notes the operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in READS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def with_places(batch: Batch) -> Batch:
    """The batch as the loader's makers give it: with the positions that losses choose."""

    def of(_: str, stream: Stream) -> Stream:
        places = {} if stream.mask is None else {"mask": flat_places(stream.mask)}
        if "ids" in stream.target:
            places |= {
                "ids": flat_places(stream.target["ids"] != IGNORE),
                NEXT: flat_places(next_tokens(stream) != IGNORE),
            }
        if "masked" in stream.target:
            places["masked"] = flat_places(stream.target["masked"])
        return replace(stream, places=places)

    return batch.map_streams(of)


class _Samples:
    samples_per_epoch = 100


def reads_of(name: str, batch: Batch) -> list[str]:
    """What the second step of a run reads; the first makes the optimiser's state."""
    recipe = Recipe(objectives=["x"], model={}, steps=10, batch_size=4)
    run = Run(recipe, torch.device("cpu"), SYSTEMS[name].net(), _Samples(), 10)
    train_step(run, [batch])
    with Reads() as reads:
        train_step(run, [batch])
    return reads.seen


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_waits_for_nothing(name: str) -> None:
    found = reads_of(name, with_places(SYSTEMS[name].batch(0)))
    assert len(found) == ALLOWED.get(name, 0), found


def test_positions_that_nobody_computed_are_waited_for() -> None:
    assert reads_of("blip", SYSTEMS["blip"].batch(0)) == ["nonzero"]


def test_makers_compute_them() -> None:
    text = {"data": np.arange(5), "target/ids": np.array([IGNORE, 7, IGNORE, 9, IGNORE])}
    short = {"data": np.arange(3), "target/ids": np.array([IGNORE, 8, IGNORE])}
    places = Text(tokenizer=SimpleNamespace(pad=0), max_length=9).collate([text, short]).places
    assert {name: at.tolist() for name, at in places.items()} == {
        "mask": [0, 1, 2, 3, 4, 5, 6, 7],
        "ids": [1, 3, 6],
        "next": [0, 1, 2, 3, 4, 5],
    }
