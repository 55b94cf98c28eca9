"""Finds pairs of unit vectors with a high cosine: candidates in blocks by short sketches, then exact scores in float64.

A sketch stores a vector's coordinates along the dominant directions and the norm of the rest. The product of two
sketches is an upper bound of their cosine (Cauchy-Schwarz), so no pair is missed, and most products cost an eighth of one
of full vectors. The result does not depend on sketches: the cosine of each candidate is recomputed from the full vectors.
On a GPU, `on_device.pairs` searches in larger blocks, and pairs are decided as on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.engine.worker.device import device_of_step

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.dedup.on_device.pairs import DevicePairs

Vectors = npt.NDArray[np.float32]  # (N, D), unit norm
Rows = npt.NDArray[np.int64]

T = TypeVar("T")
R = TypeVar("R")

BLOCK_ROWS, BLOCK_COLUMNS = 256, 4096  # 4 MB of products
BLOCKS_PER_WAVE = 8
SCORE_ROWS = 8192  # pairs scored at once
SLACK = 1e-4  # tolerance; the error of a float32 product is about 1e-6
DECIMALS = 6  # of a cosine; further digits depend on the machine
DEVICE_ERROR = 1e-10  # of a cosine in float64, at most; that of a sum of D products is about 1e-16 * D
DEVICE_SHARE = 0.5  # of the memory of a GPU that is free when the search begins
SKETCH_SAMPLE = 4096
FALSE_PER_ROW = (
    10  # max false candidates per row; scoring one costs as much as 3,000 products of 64-d sketches
)


@dataclass(frozen=True, slots=True)
class SimilarPairs:
    """P pairs of row numbers, a < b, with their cosine; three arrays (P,)."""

    a: Rows
    b: Rows
    cosine: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """The rows on one side of a comparison: row numbers (M,), sketches (M, R + 1)."""

    rows: Rows
    sketches: Vectors


class TooMany(Exception):
    """Raised when the number of pairs exceeds the limit."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Threads that compute one block each with single-threaded torch, so that results do not depend on their number.

    pairs: the search on `device` if that is a GPU, None on the CPU.
    """

    num: int
    device: str
    pairs: DevicePairs | None = None

    def map(self, fn: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yields fn(item) in order, in waves of items: bounds the memory of results and the work wasted after an error."""
        wave = self.num * BLOCKS_PER_WAVE
        with ThreadPoolExecutor(self.num) as pool:
            for start in range(0, len(items), wave):
                yield from list(pool.map(fn, items[start : start + wave]))


@contextmanager
def workers() -> Iterator[Workers]:
    """Yields as many workers as torch has threads, or one on a GPU. Matrix products use full float32 precision.

    On a GPU, the search for pairs takes at most DEVICE_SHARE of the memory that is free there now.
    """
    import torch

    num, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    gpu = device_of_step() == "cuda"
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        yield on_gpu("cuda") if gpu else Workers(num, "cpu")
    finally:
        torch.set_num_threads(num)
        torch.set_float32_matmul_precision(precision)


def on_gpu(device: str) -> Workers:
    import torch

    from vlpipe.stages.dedup.on_device.pairs import DevicePairs

    free, _ = torch.cuda.mem_get_info(device)
    return Workers(1, device, DevicePairs(device, int(DEVICE_SHARE * free)))


def strong_directions(sample: Vectors, threshold: float, num_rows: int, device: str = "cpu") -> Vectors:
    """Returns (D, R): the R leading principal directions of the sample, without centring.

    device: where products are computed.
    A false candidate is a pair whose sketches reach the threshold but whose vectors do not. R is the smallest of D/8, D/4,
    D/2, D for which at most FALSE_PER_ROW of them per row are expected in a search over `num_rows` rows.
    """
    import torch

    width = sample.shape[1]
    doubles = torch.from_numpy(sample).double()
    basis = torch.linalg.eigh(doubles.T @ doubles).eigenvectors.flip(1).float().numpy()
    true = _num_above(sample, threshold, device)
    for kept in (width // 8, width // 4, width // 2):
        short = sketch(sample, basis[:, :kept], device) if kept else None
        found = np.inf if short is None else _num_above(short, threshold, device)
        if (found - true) * num_rows <= FALSE_PER_ROW * len(sample) ** 2:
            return np.ascontiguousarray(basis[:, :kept])
    return np.ascontiguousarray(basis)


def _num_above(x: Vectors, threshold: float, device: str) -> int:
    import torch

    rows = torch.from_numpy(x).to(device)
    return int(torch.count_nonzero(rows @ rows.T >= threshold - SLACK))


def sketch(vectors: Vectors, basis: Vectors, device: str = "cpu") -> Vectors:
    """Returns sketches, (N, D) -> (N, R + 1): the coordinates along `basis` (D, R), then the norm of the remainder.

    device: where they are computed; the last digits depend on it.
    """
    import torch

    if device != "cpu":
        return _sketch_on(device, vectors, basis)
    along = (torch.from_numpy(vectors) @ torch.from_numpy(basis)).numpy()
    rest = (vectors.astype(np.float64) ** 2).sum(axis=1) - (along.astype(np.float64) ** 2).sum(axis=1)
    return np.column_stack([along, np.sqrt(np.maximum(rest, 0)).astype(np.float32)])


def _sketch_on(device: str, vectors: Vectors, basis: Vectors) -> Vectors:
    import torch

    x, directions = torch.from_numpy(vectors).to(device), torch.from_numpy(basis.copy()).to(device)
    along = x @ directions
    rest = (x.double() ** 2).sum(1) - (along.double() ** 2).sum(1)
    found: Vectors = torch.cat([along, rest.clamp(min=0).sqrt().float()[:, None]], dim=1).cpu().numpy()
    return found


def near_pairs(
    at: Workers, left: Side, right: Side, vectors: Vectors, threshold: float, *, same: bool, limit: int
) -> Iterator[SimilarPairs]:
    """Yields the pairs (row of `left`, row of `right`) with a cosine of at least `threshold`, block by block.

    same: `right` begins with the rows of `left`, and each pair is returned once. Raises TooMany as soon as one block of
    rows has more than `limit` pairs; on a GPU, as soon as there are more than `limit`.
    """
    import torch

    if at.pairs is not None:
        yield from _near_pairs_on_device(at.pairs, left, right, vectors, threshold, same=same, limit=limit)
        return
    columns = torch.from_numpy(right.sketches).to(at.device)

    def block(start: int) -> list[SimilarPairs]:
        rows = torch.from_numpy(left.sketches[start : start + BLOCK_ROWS]).to(at.device)
        found = []
        for first in range(start if same else 0, len(columns), BLOCK_COLUMNS):
            i, j = _above(rows @ columns[first : first + BLOCK_COLUMNS].T, threshold - SLACK)
            i, j = i + start, j + first
            if same:
                i, j = i[i < j], j[i < j]
            found.append(scored(vectors, left.rows[i], right.rows[j], threshold))
            if sum(len(f.a) for f in found) > limit:
                raise TooMany
        return found

    for parts in at.map(block, range(0, len(left.rows), BLOCK_ROWS)):
        yield from parts


def _near_pairs_on_device(
    search: DevicePairs,
    left: Side,
    right: Side,
    vectors: Vectors,
    threshold: float,
    *,
    same: bool,
    limit: int,
) -> Iterator[SimilarPairs]:
    sides = (left.rows, left.sketches), (right.rows, right.sketches)
    num = 0
    for a, b, cosine in search.search(*sides, vectors, threshold, slack=SLACK, same=same):
        found = decided(vectors, a, b, cosine, threshold)
        num += len(found.a)
        if num > limit:
            raise TooMany
        yield found


def decided(
    vectors: Vectors, a: Rows, b: Rows, cosine: npt.NDArray[np.float64], threshold: float
) -> SimilarPairs:
    """Returns what `scored` does, given cosines in float64 whose last digits are those of another device.

    A pair is decided by its rounded cosine. Where the cosine is so close to the middle between two rounded values that
    DEVICE_ERROR may change it, `score` computes it again.
    """
    a, b = np.minimum(a, b), np.maximum(a, b)
    steps = cosine * 10**DECIMALS
    unsure = np.abs(steps - np.floor(steps) - 0.5) <= DEVICE_ERROR * 10**DECIMALS
    cosine = np.minimum(np.round(cosine, DECIMALS), 1.0)
    cosine[unsure] = score(vectors, a[unsure], b[unsure])
    near = cosine >= threshold
    return SimilarPairs(a[near], b[near], cosine[near])


def _above(products: torch.Tensor, threshold: float) -> tuple[Rows, Rows]:
    """Returns (rows, columns) of products >= threshold. Rows without one, the majority, are scanned only once."""
    import torch

    hit = torch.nonzero(products.amax(dim=1) >= threshold)[:, 0]
    near = torch.nonzero(products[hit] >= threshold)
    return hit[near[:, 0]].cpu().numpy(), near[:, 1].cpu().numpy()


def scored(vectors: Vectors, a: Rows, b: Rows, threshold: float) -> SimilarPairs:
    """Returns the pairs with a cosine of at least `threshold`, as (smaller, larger) row number."""
    a, b = np.minimum(a, b), np.maximum(a, b)
    cosine = score(vectors, a, b)
    near = cosine >= threshold
    return SimilarPairs(a[near], b[near], cosine[near])


def score(vectors: Vectors, a: Rows, b: Rows) -> npt.NDArray[np.float64]:
    """Returns the cosine per pair, rounded to 6 decimals: at most 1, and exactly 1 for equal vectors."""
    cosines = np.empty(len(a), np.float64)
    for start in range(0, len(a), SCORE_ROWS):
        part = slice(start, start + SCORE_ROWS)
        x, y = vectors[a[part]].astype(np.float64), vectors[b[part]].astype(np.float64)
        lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        cosines[part] = np.round((x * y).sum(axis=1) / lengths, DECIMALS)
    return np.minimum(cosines, 1.0)


def merged(parts: Iterable[SimilarPairs], num_rows: int) -> SimilarPairs:
    """Returns the pairs of several partial searches as one: without repeated pairs, sorted by their row numbers (a, b)."""
    found = list(parts)
    a, b, cosine = (
        np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in found)])
        for name, kind in (("a", np.int64), ("b", np.int64), ("cosine", np.float64))
    )
    _, first = np.unique(a * np.int64(max(num_rows, 1)) + b, return_index=True)
    return SimilarPairs(a[first], b[first], cosine[first])
