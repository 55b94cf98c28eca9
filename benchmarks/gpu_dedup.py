"""(d) All pairs at cosine 0.9 among N x 512 vectors: the project's search against plain products in blocks."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch
from gpu_common import Bench, synchronise

from vlpipe.stages.dedup.cosine import SKETCH_SAMPLE, Side, near_pairs, sketch, strong_directions, workers

THRESHOLD, WIDTH = 0.9, 512
ROWS, COLUMNS = 4096, 65536  # of a block of plain products


def measure(bench: Bench) -> None:
    for num in (2_000,) if bench.small else (50_000, 200_000):
        if not bench.has_time(f"{num} vectors"):
            return
        vectors = made(num)
        plain_s, plain = plain_pairs(bench, vectors)
        ours_s, ours, done = our_pairs(bench, vectors)
        if done == 1 and ours != plain:
            raise RuntimeError(f"{num} vectors: {ours} pairs, but plain products find {plain}")
        what = f"{num} x {WIDTH}" if done == 1 else f"{num} x {WIDTH}, stopped after {done:.0%} of the rows"
        bench.add(what, plain_s=plain_s, ours_s=ours_s, pairs=ours, ours_over_plain=ours_s / plain_s)


def made(num: int) -> npt.NDArray[np.float32]:
    """Unit vectors of which 1 in 100 is a near copy of another, at a cosine of about 0.96."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num, WIDTH), np.float32)
    copies = num // 100
    vectors[:copies] = vectors[copies : 2 * copies] + 0.3 * rng.standard_normal((copies, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain_pairs(bench: Bench, vectors: npt.NDArray[np.float32]) -> tuple[float, int]:
    """Seconds and pairs of fp32 products, the copy to the device included; the second of two runs."""
    torch.set_float32_matmul_precision("highest")
    seconds = 0.0
    for _ in range(2):
        synchronise(bench)
        began, num = time.perf_counter(), 0
        on_device = torch.from_numpy(vectors).to(bench.device)
        for first in range(0, len(vectors), ROWS):
            for second in range(first, len(vectors), COLUMNS):
                products = on_device[first : first + ROWS] @ on_device[second : second + COLUMNS].T
                near = (products >= THRESHOLD).nonzero()
                num += int((near[:, 0] + first < near[:, 1] + second).sum())
        seconds = time.perf_counter() - began
    return seconds, num


def our_pairs(bench: Bench, vectors: npt.NDArray[np.float32]) -> tuple[float, int, float]:
    """Seconds with the sketches, pairs, and the share of the rows that was reached in the section's time."""
    began, num, last = time.perf_counter(), 0, 0
    basis = strong_directions(vectors[:SKETCH_SAMPLE], THRESHOLD, len(vectors))
    side = Side(np.arange(len(vectors)), sketch(vectors, basis))
    with workers() as at:
        for found in near_pairs(at, side, side, vectors, THRESHOLD, same=True, limit=10**9):
            num += len(found.a)
            last = max(last, int(found.a.max(initial=0)))
            if time.monotonic() > bench.ends_s:
                return time.perf_counter() - began, num, last / len(vectors)
    return time.perf_counter() - began, num, 1.0
