"""The order of training samples. It depends on the seed, epoch and position only: the step number is all a resume needs.

In each epoch, row groups are permuted and cut into windows, and samples are shuffled within a window. The row groups of
a window are in memory together, so windows are bounded in rows and bytes; a small dataset is one window. Each rank gets
one contiguous part of every epoch; batches continue across epoch ends, so no sample is dropped or padded and no batch
is short.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

Ints = npt.NDArray[np.int64]
UNITS, SHARE, EXTRA, WINDOW = range(
    4
)  # seed constants: each kind of random draw has its own generator, so that none affects another
LENGTH = 6  # of `by_length`; 4 and 5 are uses in `make_batch` and `train.recipe`


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample `index` of row group `unit`, at position `place` of `epoch`."""

    unit: int
    index: int
    epoch: int
    place: int


@dataclass(frozen=True, slots=True)
class Window:
    """Samples `start` to `stop` of an epoch: `sizes[i]` of them from row group `units[i]`."""

    epoch: int
    start: int
    stop: int
    units: Ints
    sizes: Ints


@dataclass(frozen=True, slots=True)
class Share:
    """How often the samples of one input occur per epoch: each `whole` times, and `extra` random ones once more."""

    counts: Ints  # samples in each row group
    whole: int
    extra: int

    @classmethod
    def of(cls, counts: Sequence[int], weight: float) -> Share:
        """Returns the Share of an input. counts: samples per row group; weight: mean occurrences of a sample per epoch."""
        total = sum(counts)
        return cls(np.asarray(counts, np.int64), int(weight), round((weight - int(weight)) * total))

    @property
    def num_samples(self) -> int:
        return self.whole * int(self.counts.sum()) + self.extra

    def sizes(self, rng: np.random.Generator) -> Ints:
        """Returns the number of samples from each row group in one epoch, (units,).

        Uses systematic sampling: every sample has the same probability, and every epoch has the same number of samples.
        """
        total = max(1, int(self.counts.sum()))
        ends = (np.cumsum(self.counts) * self.extra + rng.integers(total)) // total
        return self.whole * self.counts + np.diff(ends, prepend=0)


@dataclass(frozen=True, slots=True)
class Part:
    """A rank's part of a window. position: number of the rank's samples before it, of all epochs. skip: its first samples
    that the rank has had before."""

    samples: list[Sample]
    position: int
    skip: int


def cuts(part: Part, size: int) -> list[int]:
    """Returns the sizes of a part's pieces: the rest of the batch begun before it, whole batches, the start of the next one.

    Batches of `size` begin at multiples of it of the rank's samples. The first and the last piece may be empty.
    """
    first = min(-part.position % size, len(part.samples))
    num_whole, last = divmod(len(part.samples) - first, size)
    return [first, *[size] * num_whole, last]


def by_length(
    part: Part, lengths: Sequence[float], size: int, seed: int, balance: bool = False
) -> list[list[Sample]]:
    """Returns the pieces of a part (see `cuts`), each with samples of similar length; their order is random.

    lengths: of each sample. balance: the whole batches have about the same number of padded positions, that is samples
    times the longest, in place of `size` samples each; there are as many of them, and `size` is their mean. The first and
    the last piece, whose sizes are fixed, then have the shortest samples.
    """
    rng = np.random.default_rng((seed, LENGTH, part.position))
    sizes, of = np.array(cuts(part, size)), np.asarray(lengths)
    ranked = np.argsort(of, kind="stable")  # the samples are shuffled, so equal lengths are, too
    order = rng.permutation(len(sizes))  # which piece gets the shortest, the next, ...
    if balance:
        edges = {0, len(sizes) - 1}
        order = np.array(sorted(order.tolist(), key=lambda k: k not in edges))
    ends = np.cumsum(sizes[order])
    chosen = {int(k): ranked[end - sizes[k] : end] for k, end in zip(order, ends, strict=True)}
    whole = [int(k) for k in order if 0 < k < len(sizes) - 1]
    if balance and whole:
        rest = ranked[sizes[0] + sizes[-1] :]
        parts = np.split(rest, np.cumsum(balanced(of[rest], len(whole)))[:-1])
        chosen |= dict(zip(whole, parts, strict=True))
    return [[part.samples[i] for i in chosen[k]] for k in range(len(sizes))]


def balanced(lengths: npt.NDArray[Any], num: int) -> list[int]:
    """Returns the sizes of `num` groups of ascending lengths whose largest product of size and longest is least.

    UNITER's buckets of tokens (https://arxiv.org/abs/1909.11740) have a fixed product instead, and any number.
    """
    lengths = np.maximum(np.ceil(lengths), 1).astype(np.int64)
    low, high = int(lengths[-1]), int(lengths[-1]) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_within(lengths, middle)) <= num else (middle + 1, high)
    sizes = _within(lengths, low)
    groups = [
        (-size, end - size) for size, end in zip(sizes, accumulate(sizes), strict=True)
    ]  # (-size, start)
    heapq.heapify(groups)
    while len(groups) < num:  # fewer groups than wanted suffice: the largest are halved
        size, start = -groups[0][0], groups[0][1]
        heapq.heapreplace(groups, (-(size // 2), start))
        heapq.heappush(groups, (-(size - size // 2), start + size // 2))
    return [-size for size, _ in sorted(groups, key=lambda group: group[1])]


def _within(lengths: Ints, budget: int) -> list[int]:
    """Returns the sizes of groups of ascending lengths, each as large as size x longest <= budget allows."""
    sizes, left = [], len(lengths)
    while left:
        size = min(left, max(1, budget // int(lengths[left - 1])))
        sizes.append(size)
        left -= size
    return sizes[::-1]


class Order:
    """The sample order of all epochs. Row groups (units) are numbered consecutively over all inputs.

    shares: one per input. window: rows per window. window_bytes: their size. A window ends with the row group that reaches
    one of the two. sizes: (rows, bytes) of each row group; None: a row per sample, of 0 bytes. Raises VlpipeError if there
    are no samples.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        seed: int,
        window: int,
        window_bytes: int = 1 << 62,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.shares, self.seed = shares, seed
        self.counts = np.concatenate([share.counts for share in shares])
        self._limits = (window, window_bytes)
        of_units = [(int(n), 0) for n in self.counts] if sizes is None else sizes
        self._sizes = np.array(of_units, np.int64).reshape(-1, 2)
        self.samples_per_epoch = sum(share.num_samples for share in shares)
        if not self.samples_per_epoch:
            raise VlpipeError(
                "training: no samples; every text was dropped or is blank, there are no rows, or every mix weight is 0"
            )

    def windows(self, epoch: int) -> list[Window]:
        """Returns the windows of an epoch, in order."""
        sizes = np.concatenate([s.sizes(self._rng(SHARE, epoch, i)) for i, s in enumerate(self.shares)])
        units = self._rng(UNITS, epoch).permutation(len(sizes))
        units = units[sizes[units] > 0]
        ends = np.cumsum(sizes[units])
        held = np.cumsum(self._sizes[units], axis=0)  # rows and bytes up to and with each row group
        found: list[Window] = []
        first, start, before = 0, 0, np.zeros(2, np.int64)
        while first < len(units):
            full = [np.searchsorted(held[:, i], before[i] + limit) for i, limit in enumerate(self._limits)]
            last = min(int(min(full)), len(units) - 1)
            inside = units[first : last + 1]
            found.append(Window(epoch, start, int(ends[last]), inside, sizes[inside]))
            first, start, before = last + 1, int(ends[last]), held[last]
        return found

    def samples(self, window: Window) -> list[Sample]:
        """Returns all samples of a window, shuffled."""
        picks = [
            self._picks(window.epoch, int(unit), int(size))
            for unit, size in zip(window.units, window.sizes, strict=True)
        ]
        unit, index = np.repeat(window.units, window.sizes), np.concatenate(picks)
        shuffled = self._rng(WINDOW, window.epoch, window.start).permutation(len(unit))
        return [
            Sample(int(unit[k]), int(index[k]), window.epoch, window.start + at)
            for at, k in enumerate(shuffled)
        ]

    def _picks(self, epoch: int, unit: int, size: int) -> Ints:
        whole, extra = divmod(size, int(self.counts[unit]))
        drawn = self._rng(EXTRA, epoch, unit).permutation(int(self.counts[unit]))[:extra]
        return np.concatenate([np.tile(np.arange(self.counts[unit]), whole), drawn])

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *what))

    def of_rank(self, rank: int, world_size: int, skip: int = 0) -> Iterator[list[Sample]]:
        """Yields the rank's samples endlessly, one list per window, without the first `skip` samples.

        Raises VlpipeError if there are fewer samples than ranks.
        """
        for part in self.parts_of_rank(rank, world_size, skip):
            yield part.samples[part.skip :]

    def parts_of_rank(self, rank: int, world_size: int, skip: int = 0) -> Iterator[Part]:
        """Yields the rank's part of each window endlessly, from that of its sample number `skip`. Raises as `of_rank`."""
        start = rank * self.samples_per_epoch // world_size
        stop = (rank + 1) * self.samples_per_epoch // world_size
        if start == stop:
            raise VlpipeError(
                f"training: {self.samples_per_epoch} sample(s) are too few for {world_size} workers; lower num_workers"
            )
        epoch, skip = divmod(skip, stop - start)
        while True:
            for window in self.windows(epoch):
                low, high = max(start, window.start), min(stop, window.stop)
                if max(low, start + skip) < high:
                    samples = self.samples(window)[low - window.start : high - window.start]
                    yield Part(samples, epoch * (stop - start) + low - start, max(0, start + skip - low))
            epoch, skip = epoch + 1, 0
