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
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.build import build_makers
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.recipe import Recipe
from vlpipe.stages.train.train import Train

PROCESSES = "loader_processes"  # the recipe's key, where it has one


def measure(bench: Bench) -> None:
    sides = (64,) if bench.small else (500, 1280)
    cores = os.cpu_count() or 1
    counts = (1, 2) if bench.small else tuple(n for n in (1, 2, 4, 8, 16) if n <= cores)
    data = {}
    for side in sides:
        images = pictures(side, 8 if bench.small else 64)
        data[side] = stored(bench, images, 128 if bench.small else 1024, f"photos-{side}")
        kib = sum(map(len, images)) / len(images) / 1024
        bench.add(f"JPEGs of {side} px", kib_each=kib)
        for count in counts:
            alone(bench, f"{side} px, {count} threads", data[side], {"loader_threads": count})
        if PROCESSES not in {f.name for f in fields(Recipe)}:
            bench.add(f"{side} px, loader processes", skipped=f"the recipe has no key {PROCESSES} yet")
        else:
            for count in counts:
                alone(bench, f"{side} px, {count} processes", data[side], {PROCESSES: count})
        for count in counts[1:]:
            dataloader(bench, f"{side} px, torch's DataLoader, {count} processes", images, count)
    fed(bench, data[sides[0]], counts[1:])


def _recipe(bench: Bench, **more: Any) -> Train:
    size = 8 if bench.small else 128
    return recipe(
        bench, batch_size=size, augment=AUGMENT, shuffle_window=256 if bench.small else 2048, **more
    )


def _loader(bench: Bench, of: Train, data: Dataset) -> Loader:
    net = new_run(bench, of).net
    return Loader([data], of, bench.tokenizer, build_makers(of, net.model, bench.tokenizer))


def alone(bench: Bench, what: str, data: Dataset, ways: dict[str, Any]) -> None:
    if bench.has_time(what):
        of = _recipe(bench, **ways)
        with _loader(bench, of, data).batches(0, pin=not bench.small) as batches:
            bench.add(what, images_per_s=_rate(bench, batches, of.batch_size))


def _rate(bench: Bench, batches: Iterator[Any], size: int) -> float:
    """Images per second, after the batches that were made ahead."""
    for _ in range(5):
        next(batches)
    began, num = time.perf_counter(), 0
    while time.perf_counter() - began < (0.5 if bench.small else 2.5):
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


def fed(bench: Bench, data: Dataset, counts: tuple[int, ...]) -> None:
    """A step on the loader's batches against one on a batch that is at hand."""
    for count in counts:
        what = f"step fed by {count} threads"
        if not bench.has_time(what):
            return
        of = _recipe(bench, loader_threads=count, deterministic=False)
        run = new_run(bench, of)
        batch = batch_of(bench, of.batch_size)
        at_hand = median_s(bench, lambda r=run, b=batch: train_step(r, [b]), warm=4, num=5)  # type: ignore[misc]
        loader = Loader([data], of, bench.tokenizer, build_makers(of, run.net.model, bench.tokenizer))
        with loader.batches(0, pin=not bench.small) as batches:
            for _ in range(6):
                train_step(run, [next(batches)])
            synchronise(bench)
            began, num, waited = time.perf_counter(), 0, 0.0
            while time.perf_counter() - began < (0.5 if bench.small else 4):
                asked = time.perf_counter()
                found = next(batches)
                waited += time.perf_counter() - asked
                train_step(run, [found])
                num += 1
            synchronise(bench)
            each = (time.perf_counter() - began) / num
        times = {"ms_at_hand": 1e3 * at_hand, "ms_fed": 1e3 * each, "ms_waiting": 1e3 * waited / num}
        bench.add(what, **times, at_hand_over_fed=at_hand / each)
