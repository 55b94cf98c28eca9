"""Intervals by a bootstrap over replicates (seeds) and evaluated rows, the same ones for all arms of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK_VALUES = 1 << 22  # draws at a time: 32 MB, and as much for their counts


@dataclass(frozen=True, slots=True)
class Replicate:
    """The values of one replicate: sums (R, A, M) over the items of each of R rows, by arm and metric; counts (R, M) of the
    items. rows: ids of the rows, sorted."""

    rows: tuple[str, ...]
    sums: Floats
    counts: Floats


def resampled_means(replicates: Sequence[Replicate], num: int, seed: int) -> Floats:
    """Returns `num` resampled means (num, A, M) of each arm and metric over replicates. All have the same arms and metrics.

    Each time, S - 1 of S replicates are drawn with replacement (the one, if there is one), as with S the variance over
    replicates would be too small by (S - 1) / S: Rao and Wu, 1988, https://doi.org/10.1080/01621459.1988.10478591. Of each
    drawn replicate, as many rows as it has are drawn with replacement, each with all its items. The draws are the same for
    all arms and metrics, and for replicates with the same rows. NaN where no drawn row has an item of the metric. Running
    time: `num` x rows x (arms x metrics + 1) per replicate. Memory: about 100 MB, the values and the result.
    """
    rng = np.random.default_rng(seed)
    num_slots = max(1, len(replicates) - 1)
    drawn = rng.integers(len(replicates), size=(num, num_slots))
    times = np.stack([(drawn == r).sum(axis=1) for r in range(len(replicates))])  # (S, num)
    same: dict[tuple[str, ...], list[int]] = {}
    for r, one in enumerate(replicates):
        same.setdefault(one.rows, []).append(r)
    total = np.zeros((num, *replicates[0].sums.shape[1:]))
    for rows, members in same.items():
        # Rows that several replicates have are drawn once for all of them, other rows anew for each drawn replicate.
        shared = len(members) > 1
        owner = np.arange(num) if shared else np.repeat(np.arange(num), times[members[0]])
        size = max(1, BLOCK_VALUES // len(rows))
        for start in range(0, len(owner), size):
            owners = owner[start : start + size]
            weights = _weights(rng, len(owners), len(rows))
            for r in members:
                factor = times[r][owners] if shared else np.ones(len(owners))
                mine = factor > 0
                means = _means(weights[mine], replicates[r])
                np.add.at(total, owners[mine], factor[mine, None, None] * means)
    return total / num_slots


def _weights(rng: np.random.Generator, num: int, num_rows: int) -> Floats:
    """Returns (num, num_rows): how often each row is drawn, of `num_rows` draws with replacement."""
    drawn = rng.integers(num_rows, size=(num, num_rows)) + np.arange(num)[:, None] * num_rows
    return np.bincount(drawn.ravel(), minlength=num * num_rows).reshape(num, num_rows).astype(np.float64)


def _means(weights: Floats, one: Replicate) -> Floats:
    """Returns the means (B, A, M) over items of rows that count as often as `weights` (B, R) says."""
    sums = np.tensordot(weights, one.sums, axes=1)  # (B, A, M)
    counts = (weights @ one.counts)[:, None, :]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def interval(values: Floats) -> tuple[float, float]:
    """Returns the 2.5th and the 97.5th percentile of (B,), without NaN: a 95 % interval."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
