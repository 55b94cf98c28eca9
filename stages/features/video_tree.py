"""Hierarchical k-means: each level splits every cluster of the level above into at most k.

The path of a node identifies it on its level: path of the parent * k + number of the child, from 0.
Fitting and assignment use the same float64 arithmetic per point, so a token depends neither on other points nor on
the number of threads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

KMEANS_ROUNDS = 20
INIT_POINTS = (
    256  # points per centroid for the initialisation: the first ones, as the sample is in random order
)
BLOCK = 64  # points compared with k centroids at once: 6 MB at k = 12 and 1024 dimensions

Vectors = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Node = tuple[int, int, int, float]  # level from 1, path, number of points, RMS distance to the centroid


@dataclass(frozen=True, slots=True)
class Tree:
    """A fitted tree, which assigns tokens. weights: id of the weights that computed the features.

    centroids[l]: (k ** (l + 1), D) float32, indexed by path; a row of NaN is an unused node.
    """

    k: int
    weights: str
    centroids: tuple[npt.NDArray[np.float32], ...]

    def assign(self, points: Vectors) -> npt.NDArray[np.int32]:
        """Returns the token (path of the leaf) of each point: (N, D) -> (N,); ties go to the lower id."""
        if points.shape[1] != self.centroids[0].shape[1]:
            raise VlpipeError(
                f"the tree of video tokens is for vectors of {self.centroids[0].shape[1]} dimensions, but these have "
                f"{points.shape[1]}; fit a tree on features of the same model"
            )
        paths = np.zeros(len(points), np.int64)
        for level in self.centroids:
            paths = descend(points, paths, level, self.k)[0]
        return paths.astype(np.int32)

    def save(self, folder: Path) -> None:
        """Writes centroids-0.npy, centroids-1.npy, ... (the last one is indexed by token) and tree.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, level in enumerate(self.centroids):
            np.save(folder / f"centroids-{number}.npy", level)
        about = {"k": self.k, "levels": len(self.centroids), "weights": self.weights}
        (folder / "tree.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Tree:
        """Returns the tree that `save` wrote. Raises VlpipeError if the folder has none."""
        try:
            about = json.loads((folder / "tree.json").read_text())
            names = [folder / f"centroids-{number}.npy" for number in range(about["levels"])]
            return cls(about["k"], about["weights"], tuple(np.load(name) for name in names))
        except (OSError, ValueError, KeyError) as error:
            raise VlpipeError(
                f"{folder} is not a tree of video tokens (wanted tree.json and centroids-*.npy): {error}"
            ) from error


def grow(
    faiss: Any, points: npt.NDArray[np.float32], k: int, num_levels: int, seed: int, weights: str
) -> tuple[Tree, list[Node]]:
    """Fits the tree to points (N, D). Returns it and its non-empty nodes, sorted by level and path."""
    levels: list[npt.NDArray[np.float32]] = []
    nodes: list[Node] = []
    paths = np.zeros(len(points), np.int64)
    for number in range(num_levels):
        level = np.full((k ** (number + 1), points.shape[1]), np.nan, np.float32)
        for path in np.unique(paths):
            found = split(faiss, points[paths == path], k, seed)
            level[path * k : path * k + len(found)] = found
        paths, squared = descend(points, paths, level, k)
        level[np.setdiff1d(np.arange(len(level)), paths)] = np.nan  # centroids that are nearest to no point
        levels.append(level)
        nodes += _nodes(number + 1, paths, squared)
    return Tree(k, weights, tuple(levels)), nodes


def split(faiss: Any, points: npt.NDArray[np.float32], k: int, seed: int) -> npt.NDArray[np.float32]:
    """Returns centroids (k, D) by k-means; if there are k or fewer distinct points, these (at most k, D)."""
    if (
        len(np.unique(points[: 16 * k], axis=0)) <= k
    ):  # pre-check, as sorting all points costs more than k-means
        distinct = np.unique(points, axis=0)
        if len(distinct) <= k:
            return distinct
    options = {
        "min_points_per_centroid": 1,
        "max_points_per_centroid": len(points),
    }  # use all points, without a warning
    kmeans = faiss.Kmeans(points.shape[1], k, niter=KMEANS_ROUNDS, seed=seed, **options)
    kmeans.train(np.ascontiguousarray(points), init_centroids=spread(points[: INIT_POINTS * k], k, seed))
    found: npt.NDArray[np.float32] = kmeans.centroids
    return found


def spread(points: npt.NDArray[np.float32], k: int, seed: int) -> npt.NDArray[np.float32]:
    """Chooses k initial points by greedy k-means++ (Arthur and Vassilvitskii 2007): the best of a few trials at each step.

    FAISS starts from k random points: with 3 separate clusters, 7 of 9 such starts miss one, and many do not recover.
    """
    draw, wide = np.random.default_rng(seed), points.astype(np.float64)
    chosen = [int(draw.integers(len(wide)))]
    nearest = np.square(wide - wide[chosen[0]]).sum(axis=1)
    for _ in range(k - 1):
        weight = nearest / nearest.sum() if nearest.any() else None
        trials = draw.choice(len(wide), size=2 + int(np.log(k)), p=weight)
        left = [np.minimum(nearest, np.square(wide - wide[t]).sum(axis=1)) for t in trials]
        best = int(np.argmin([values.sum() for values in left]))
        chosen.append(int(trials[best]))
        nearest = left[best]
    return points[chosen]


def descend(
    points: Vectors, paths: Ids, level: npt.NDArray[np.float32], k: int
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Returns the path (N,) of each point's nearest child centroid, and the squared distance to it.

    points: (N, D). paths: (N,), of their nodes on the level above. level: the centroids of this level, as in `Tree`.
    """
    below, squared = np.empty(len(points), np.int64), np.empty(len(points))
    children = level.reshape(-1, k, level.shape[1])
    for start in range(0, len(points), BLOCK):
        part = slice(start, start + BLOCK)
        apart = points[part, None].astype(np.float64) - children[paths[part]]  # (B, k, D)
        distance = np.square(apart).sum(axis=2)
        distance[np.isnan(distance)] = np.inf
        nearest = distance.argmin(axis=1)
        below[part] = paths[part] * k + nearest
        squared[part] = distance[np.arange(len(nearest)), nearest]
    return below, squared


def _nodes(level: int, paths: Ids, squared: npt.NDArray[np.float64]) -> list[Node]:
    live, place = np.unique(paths, return_inverse=True)
    counts = np.bincount(place)
    means = np.sqrt(np.bincount(place, squared) / counts)
    return [(level, int(p), int(n), float(d)) for p, n, d in zip(live, counts, means, strict=True)]
