"""k-means in numpy: Lloyd's iterations from a k-means++ start. Arthur and Vassilvitskii 2007."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
BLOCK = 1 << 22  # distances in memory at once


def kmeans(points: Points, num: int, *, iterations: int, seed: int) -> Points:
    """Returns `num` centroids (num, D) of points (N, D), N >= num. One that loses its points takes the farthest point."""
    rng = np.random.default_rng(seed)
    centroids = _start(points, num, rng)
    for _ in range(iterations):
        ids, distances = nearest(points, centroids)
        sums = np.zeros_like(centroids)
        np.add.at(sums, ids, points)
        counts = np.bincount(ids, minlength=num)
        moved = sums / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        moved[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(points: Points, centroids: Points) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Returns the nearest centroid of each point, and the squared distance to it."""
    ids, distances = np.empty(len(points), np.int64), np.empty(len(points))
    squares = (centroids**2).sum(1)
    step = max(1, BLOCK // len(centroids))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        found = squares - 2 * part @ centroids.T
        own = found.argmin(1)
        ids[start : start + step] = own
        distances[start : start + step] = found[np.arange(len(part)), own] + (part**2).sum(1)
    return ids, np.maximum(distances, 0)


def _start(points: Points, num: int, rng: np.random.Generator) -> Points:
    """Each next centroid is a point drawn with a probability proportional to its squared distance to those so far."""
    chosen = [int(rng.integers(len(points)))]
    distances = np.full(len(points), np.inf)
    for _ in range(num - 1):
        distances = np.minimum(distances, ((points - points[chosen[-1]]) ** 2).sum(1))
        total = distances.sum()
        odds = distances / total if total > 0 else None
        chosen.append(int(rng.choice(len(points), p=odds)))
    return points[chosen].astype(np.float64)
