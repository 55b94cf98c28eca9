"""A sample of windows that depends only on row ids: those with the smallest hashes, independent of row order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Marks = npt.NDArray[np.uint64]


class Sample:
    """Keeps the `size` added vectors with the smallest hashes; up to twice as many, and one batch, are in memory."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.num_seen = size, seed, 0
        self._marks: list[Marks] = []
        self._points: list[npt.NDArray[np.float16]] = []
        self._num_held = 0
        self._limit = np.uint64(2**64 - 1)

    def add(self, ids: Sequence[str], counts: npt.NDArray[np.int64], points: npt.NDArray[np.float16]) -> None:
        """Adds the windows (M, D) of rows: the next counts[k] of `points` are those of row k."""
        marks = _marks(ids, counts, self.seed)
        self.num_seen += len(marks)
        take = marks <= self._limit
        self._marks.append(marks[take])
        self._points.append(points[take])
        self._num_held += int(take.sum())
        if self._num_held > 2 * self.size:
            self._shrink()

    def points(self) -> npt.NDArray[np.float32]:
        """Returns the sample (N, D), sorted by hash."""
        if not self._num_held:
            return np.empty((0, 0), np.float32)
        self._shrink()
        return self._points[0].astype(np.float32)

    def _shrink(self) -> None:
        marks, points = np.concatenate(self._marks), np.concatenate(self._points)
        order = np.argsort(marks, kind="stable")[: self.size]
        self._marks, self._points, self._num_held = [marks[order]], [points[order]], len(order)
        if len(order) == self.size:
            self._limit = marks[order[-1]]


def _marks(ids: Sequence[str], counts: npt.NDArray[np.int64], seed: int) -> Marks:
    """Returns a hash of row id and window number for each window."""
    firsts = [
        int.from_bytes(
            hashlib.blake2b(f"{seed}:{i}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        )
        for i in ids
    ]
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return _mixed(np.repeat(np.array(firsts, np.uint64), counts) + number.astype(np.uint64))


def _mixed(x: Marks) -> Marks:
    """splitmix64 (Steele et al. 2014): consecutive numbers get unrelated hashes."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
