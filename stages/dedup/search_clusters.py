"""Partitions rows into clusters, so that only rows of the same cluster are compared.

A row belongs to its nearest cluster and is a guest in other clusters whose centroids are almost as near. Without guests,
pairs across a border are missed (7 % at cosine 0.90, and half of those that differ along the dominant directions of the
data). A fixed number of clusters per row would be too large for most rows and too small for some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.stages.dedup.cosine import BLOCK_ROWS, Rows, Vectors, Workers

POINTS_PER_CLUSTER = 256  # in the k-means sample; FAISS' default max
KMEANS_ROUNDS = 20
MEMBER = np.dtype([("cluster", "<i4"), ("row", "<i8"), ("own", "?")])
MAX_SHARE = 4  # a cluster larger than 4 times the mean is split
DEVICE_ROWS = 16_384  # assigned at once on a GPU, fewer for many clusters
DEVICE_PRODUCTS = 1 << 26  # 256 MB of products, and their largest values


@dataclass(frozen=True, slots=True)
class Members:
    """The members of all clusters. Those of cluster c are `rows[bounds[c]:bounds[c + 1]]`, ascending.

    own: for each member, True if c is its nearest cluster, False if it is a guest.
    """

    rows: Rows
    own: npt.NDArray[np.bool_]
    bounds: Rows

    def of(self, cluster: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
        part = slice(self.bounds[cluster], self.bounds[cluster + 1])
        return self.rows[part], self.own[part]

    def packed(self) -> npt.NDArray[Any]:
        """Returns one structured array with (cluster, row, own) per member, for storage."""
        cluster = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        return np.rec.fromarrays([cluster, self.rows, self.own], dtype=MEMBER).view(np.ndarray)

    @classmethod
    def unpacked(cls, found: npt.NDArray[Any]) -> Members:
        num_clusters = int(found["cluster"].max(initial=-1)) + 1
        bounds = np.searchsorted(found["cluster"], np.arange(num_clusters + 1))
        return cls(found["row"], found["own"], bounds)


def find_centroids(faiss: Any, sample: Vectors, num_clusters: int, seed: int) -> Vectors:
    """Returns centroids (K, R) by spherical k-means on `sample` (S, R) with `num_clusters` clusters.

    Clusters larger than MAX_SHARE times the mean are split by k-means again, so K may be larger. Clusters without a point
    are removed.
    """
    centroids = [_kmeans(faiss, sample, num_clusters, seed)]
    limit = MAX_SHARE * len(sample) / num_clusters
    todo = _groups(sample, centroids[0])
    while todo:
        points, centroid = todo.pop()
        num_parts = min(len(points), round(MAX_SHARE * len(points) / limit))
        if len(points) <= limit or (points == points[0]).all():
            centroids.append(centroid)
            continue
        parts = _groups(points, _kmeans(faiss, points, num_parts, seed))
        if max(len(p) for p, _ in parts) == len(points):  # k-means cannot split this cluster
            centroids.append(centroid)
            continue
        todo += parts
    return np.concatenate([c.reshape(-1, sample.shape[1]) for c in centroids[1:]])


def _kmeans(faiss: Any, points: Vectors, num_clusters: int, seed: int) -> Vectors:
    options = {
        "min_points_per_centroid": 1,
        "max_points_per_centroid": len(points),
    }  # use all points, without a warning
    kmeans = faiss.Kmeans(
        points.shape[1], num_clusters, niter=KMEANS_ROUNDS, seed=seed, spherical=True, **options
    )
    kmeans.train(np.ascontiguousarray(points))
    found: Vectors = kmeans.centroids
    return found


def _groups(points: Vectors, centroids: Vectors) -> list[tuple[Vectors, Vectors]]:
    """Returns (points, centroid) of each centroid that is the nearest one of at least one point."""
    import torch

    targets, blocks = torch.from_numpy(centroids.T), torch.from_numpy(points).split(BLOCK_ROWS)
    nearest = torch.cat([(block @ targets).argmax(dim=1) for block in blocks]).numpy()
    return [(points[nearest == c], centroids[c]) for c in np.unique(nearest)]


def assign(at: Workers, points: Vectors, centroids: Vectors, *, margin: float, probes: int) -> Members:
    """Assigns each row of `points` (N, R) to its nearest cluster and, as a guest, to clusters almost as near.

    These are the clusters whose centroid has a cosine to the row that is at most `margin` below that of the nearest. A row
    is in at most `probes` clusters in total.
    """
    import torch

    probes = min(probes, len(centroids))
    targets = torch.from_numpy(np.ascontiguousarray(centroids.T)).to(at.device)

    num = BLOCK_ROWS if at.pairs is None else max(1, min(DEVICE_ROWS, DEVICE_PRODUCTS // len(centroids)))

    def block(start: int) -> tuple[Rows, Rows, npt.NDArray[np.bool_]]:
        rows = torch.from_numpy(np.array(points[start : start + num])).to(at.device)
        near = torch.topk(rows @ targets, probes, dim=1)
        take = (near.values >= near.values[:, :1] - margin).cpu().numpy()
        place, rank = np.nonzero(take)
        return place + start, near.indices.cpu().numpy()[place, rank], rank == 0

    found = list(at.map(block, range(0, len(points), num)))
    rows, clusters, own = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(clusters, kind="stable")
    bounds = np.searchsorted(clusters[order], np.arange(len(centroids) + 1))
    return Members(rows[order].astype(np.int64), own[order], bounds.astype(np.int64))
