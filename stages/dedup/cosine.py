"""Pairs of unit vectors with a high cosine, found in blocks through a short sketch of each, scored in float64.

A sketch holds a vector's share of the strongest directions and the length of the rest, so that the product of two is
never below their cosine (Cauchy-Schwarz): no pair is lost, and most products cost an eighth. What counts as a pair
depends on none of this: each candidate's cosine is computed again from its two vectors.
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

Vectors = npt.NDArray[np.float32]  # (N, D), unit norm
Rows = npt.NDArray[np.int64]

T = TypeVar("T")
R = TypeVar("R")

BLOCK_ROWS, BLOCK_COLUMNS = 256, 4096  # 4 MB of products
BLOCKS_PER_WAVE = 8
SCORE_ROWS = 8192  # pairs scored in one go
SLACK = 1e-4  # the float32 products are wrong by about 1e-6
DECIMALS = 6  # of a cosine; what lies below depends on the machine
SKETCH_SAMPLE = 4096
FALSE_PER_ROW = 10  # scoring a pair costs as much as 3,000 products of sketches of length 64


@dataclass(frozen=True, slots=True)
class SimilarPairs:
    """Pairs a < b of row numbers with their cosine."""

    a: Rows
    b: Rows
    cosine: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """Row numbers and their sketches, (M, R + 1)."""

    rows: Rows
    sketches: Vectors


class TooMany(Exception):
    """More pairs than anybody can mean."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Threads that each compute one block with one thread, so that their number changes no bit."""

    num: int
    device: str

    def map(self, fn: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """In waves: results wait in bounded memory, and after an error little is computed in vain."""
        wave = self.num * BLOCKS_PER_WAVE
        with ThreadPoolExecutor(self.num) as pool:
            for start in range(0, len(items), wave):
                yield from list(pool.map(fn, items[start : start + wave]))


@contextmanager
def workers() -> Iterator[Workers]:
    """As many as torch has threads; one on a GPU, which gets whole blocks and multiplies them in full float32."""
    import torch

    num, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    gpu = device_of_step() == "cuda"
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        yield Workers(1 if gpu else num, "cuda" if gpu else "cpu")
    finally:
        torch.set_num_threads(num)
        torch.set_float32_matmul_precision(precision)


def strong_directions(sample: Vectors, threshold: float, num_rows: int) -> Vectors:
    """(D, R): the R directions that hold most of the sample, strongest first.

    R is the least of D/8, D/4, D/2, D at which a row of `num_rows` would meet at most FALSE_PER_ROW false candidates.
    """
    import torch

    width = sample.shape[1]
    doubles = torch.from_numpy(sample).double()
    basis = torch.linalg.eigh(doubles.T @ doubles).eigenvectors.flip(1).float().numpy()
    true = _num_above(sample, threshold)
    for kept in (width // 8, width // 4, width // 2):
        found = _num_above(sketch(sample, basis[:, :kept]), threshold) if kept else np.inf
        if (found - true) * num_rows <= FALSE_PER_ROW * len(sample) ** 2:
            return np.ascontiguousarray(basis[:, :kept])
    return np.ascontiguousarray(basis)


def _num_above(x: Vectors, threshold: float) -> int:
    import torch

    rows = torch.from_numpy(x)
    return int(torch.count_nonzero(rows @ rows.T >= threshold - SLACK))


def sketch(vectors: Vectors, basis: Vectors) -> Vectors:
    """(N, D) -> (N, R + 1): the coordinates along `basis` (D, R), then the length of what is left."""
    import torch

    along = (torch.from_numpy(vectors) @ torch.from_numpy(basis)).numpy()
    rest = (vectors.astype(np.float64) ** 2).sum(axis=1) - (along.astype(np.float64) ** 2).sum(axis=1)
    return np.column_stack([along, np.sqrt(np.maximum(rest, 0)).astype(np.float32)])


def near_pairs(
    at: Workers, left: Side, right: Side, vectors: Vectors, threshold: float, *, same: bool, limit: int
) -> Iterator[SimilarPairs]:
    """Pairs of a row of `left` and one of `right`, block by block; `same`: `right` begins with `left`, each pair once.

    Raises TooMany as soon as one block has more than `limit` pairs.
    """
    import torch

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


def _above(products: torch.Tensor, least: float) -> tuple[Rows, Rows]:
    """Where a product is at least this; most rows have none, and are read once."""
    import torch

    hit = torch.nonzero(products.amax(dim=1) >= least)[:, 0]
    near = torch.nonzero(products[hit] >= least)
    return hit[near[:, 0]].cpu().numpy(), near[:, 1].cpu().numpy()


def scored(vectors: Vectors, a: Rows, b: Rows, threshold: float) -> SimilarPairs:
    """The pairs with at least this cosine, each as (smaller, larger) row number."""
    a, b = np.minimum(a, b), np.maximum(a, b)
    cosine = score(vectors, a, b)
    near = cosine >= threshold
    return SimilarPairs(a[near], b[near], cosine[near])


def score(vectors: Vectors, a: Rows, b: Rows) -> npt.NDArray[np.float64]:
    """Cosine per pair, at most 1, and exactly 1 for equal vectors."""
    cosines = np.empty(len(a), np.float64)
    for start in range(0, len(a), SCORE_ROWS):
        part = slice(start, start + SCORE_ROWS)
        x, y = vectors[a[part]].astype(np.float64), vectors[b[part]].astype(np.float64)
        lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        cosines[part] = np.round((x * y).sum(axis=1) / lengths, DECIMALS)
    return np.minimum(cosines, 1.0)


def merged(parts: Iterable[SimilarPairs], num_rows: int) -> SimilarPairs:
    """Each pair once, ordered by (a, b)."""
    found = list(parts)
    a, b, cosine = (
        np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in found)])
        for name, kind in (("a", np.int64), ("b", np.int64), ("cosine", np.float64))
    )
    _, first = np.unique(a * np.int64(max(num_rows, 1)) + b, return_index=True)
    return SimilarPairs(a[first], b[first], cosine[first])
