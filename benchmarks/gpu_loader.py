"""(b) The loader alone, by threads and processes, against torch's DataLoader; and a step that it feeds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from gpu_common import AUGMENT, Bench, batch_of, median_s, new_run, pictures, recipe, stored, synchronise

from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.loading.augment import Augmentation
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.recipe import Recipe
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.train import Train

PROCESSES = "loader_processes"  # the recipe's key, where it has one


def measure(bench: Bench) -> None:
    cores = os.cpu_count() or 1
    counts = (1, 2) if bench.small else tuple(n for n in (1, 2, 4, 8, 16) if n <= cores)
    data, images = photos(bench, 64 if bench.small else 500)
    for count in counts:
        alone(bench, f"{count} threads", data, {"loader_threads": count})
    processes = PROCESSES in {f.name for f in fields(Recipe)}
    if not processes:
        bench.add("loader processes", skipped=f"the recipe has no key {PROCESSES} yet")
    for count in counts if processes else ():
        alone(bench, f"{count} processes", data, {PROCESSES: count})
    dataloader(bench, f"torch's DataLoader, {counts[-1]} processes", images, counts[-1])
    run = new_run(bench, _recipe(bench, deterministic=False))
    for count in counts[-2:]:
        fed(bench, f"step fed by {count} threads", run, data, {"loader_threads": count})
        if processes:
            fed(bench, f"step fed by {count} processes", run, data, {PROCESSES: count})
    del run
    data, images = photos(bench, 96 if bench.small else 1280)
    for count in (counts[0], counts[-1]):
        alone(bench, f"{count} threads, large", data, {"loader_threads": count})
        if processes:
            alone(bench, f"{count} processes, large", data, {PROCESSES: count})
    dataloader(bench, f"torch's DataLoader, {counts[-1]} processes, large", images, counts[-1])


def photos(bench: Bench, side: int) -> tuple[Dataset, list[bytes]]:
    images = pictures(side, 8 if bench.small else 64)
    kib = sum(map(len, images)) / len(images) / 1024
    bench.add(f"JPEGs, {side} px wide", kib_each=kib)
    return stored(bench, images, 128 if bench.small else 1024, f"photos-{side}"), images


def _recipe(bench: Bench, **more: Any) -> Train:
    size = 8 if bench.small else 128
    return recipe(
        bench, batch_size=size, augment=AUGMENT, shuffle_window=256 if bench.small else 2048, **more
    )


def _loader(bench: Bench, of: Train, data: Dataset) -> Loader:
    image = Image(size=bench.model()["image_size"], augment=Augmentation(**AUGMENT))
    return Loader(
        [data], of, bench.tokenizer, {"image": image, "text": Text(tokenizer=bench.tokenizer, max_length=30)}
    )


def alone(bench: Bench, what: str, data: Dataset, ways: dict[str, Any]) -> None:
    if bench.has_time(what):
        of = _recipe(bench, **ways)
        with _loader(bench, of, data).batches(0, device=bench.device) as batches:
            bench.add(what, images_per_s=_rate(bench, batches, of.batch_size))


def _rate(bench: Bench, batches: Iterator[Any], size: int) -> float:
    """Images per second, after two batches."""
    for _ in range(2):
        next(batches)
    began, num = time.perf_counter(), 0
    while time.perf_counter() - began < (0.5 if bench.small else 2.0):
        next(batches)
        num += size
    return num / (time.perf_counter() - began)


class Same(torch.utils.data.Dataset[Any]):
    """The same decoding and augmentation as an ordinary map-style dataset."""

    def __init__(self, images: list[bytes], size: int) -> None:
        self.images, self.maker = images, Image(size=size, augment=Augmentation(**AUGMENT))

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> Any:
        row = Row("", 0, [], {"image": self.images[index % len(self.images)]})
        return self.maker(row, "", np.random.default_rng(index))["data"]


def dataloader(bench: Bench, what: str, images: list[bytes], processes: int) -> None:
    if bench.has_time(what):
        of = _recipe(bench)
        loader = torch.utils.data.DataLoader(
            Same(images, bench.model()["image_size"]),
            batch_size=of.batch_size,
            num_workers=processes,
            pin_memory=not bench.small,
            multiprocessing_context="fork",
        )
        bench.add(what, images_per_s=_rate(bench, iter(loader), of.batch_size))


def fed(bench: Bench, what: str, run: Run, data: Dataset, ways: dict[str, Any]) -> None:
    """A step on the loader's batches against one on a batch that is at hand."""
    if not bench.has_time(what):
        return
    of = _recipe(bench, **ways)
    batch = batch_of(bench, of.batch_size)
    at_hand = median_s(bench, lambda: train_step(run, [batch]), warm=4, num=5)
    with _loader(bench, of, data).batches(0, device=bench.device) as batches:
        for _ in range(6):
            train_step(run, [next(batches)])
        synchronise(bench)
        began, num, waited = time.perf_counter(), 0, 0.0
        while time.perf_counter() - began < (0.5 if bench.small else 3):
            asked = time.perf_counter()
            found = next(batches)
            waited += time.perf_counter() - asked
            train_step(run, [found])
            num += 1
        synchronise(bench)
        each = (time.perf_counter() - began) / num
    times = {"ms_at_hand": 1e3 * at_hand, "ms_fed": 1e3 * each, "ms_waiting": 1e3 * waited / num}
    bench.add(what, **times, at_hand_over_fed=at_hand / each)
