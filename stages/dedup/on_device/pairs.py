"""Finds pairs of rows whose sketches have a large product, in large blocks on one device, and their cosines in float64.

A wave is one block of products. The host waits for the device once per wave, for the list of its hits: segments (SEGMENT
neighbouring products of one row) with a product at or above the threshold. Hits are copied out of the wave and kept on
the device. When they fill their share of memory, and at the end, their pairs are listed, scored and sent to the host. A
wave with more hits than fit is listed in several parts, so no pair is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Vectors = npt.NDArray[np.float32]  # (N, D)
Rows = npt.NDArray[np.int64]
Scored = tuple[Rows, Rows, npt.NDArray[np.float64]]  # row numbers a and b of P pairs, their cosine; (P,) each

SEGMENT = 128  # products
MIN_HEIGHT = 1024  # rows of a block, if memory allows
MAX_AREA = 1 << 30  # products of a block
TRIANGLE = 16  # a set compared with itself: blocks of rows, so 1 / 16 more products than pairs are computed
UPLOAD_ROWS = 8192
ALIGNED = 8  # the width of sketches on the device is a multiple of this: rows begin at multiples of 32 bytes
SAMPLE = 2048  # rows of each side, to estimate the number of candidate pairs
DENSE = 1e-3  # candidates per product, above which scoring them takes longer than products of whole vectors
BELOW = 1e-6  # pairs this far below the threshold are yielded, too: the caller decides

# Parts of `max_bytes`, and what they are for: vectors and sketches if they fit, a wave, hits, scores.
VECTORS, SKETCHES, WAVE, HITS, SCORES = 1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8
PRODUCT_BYTES = 4.5  # float32, and its part of the maxima and the list of hits
HIT_BYTES = 96 * SEGMENT  # if each product of the segment is a pair
VALUE_BYTES = 48  # of a dimension of a pair: two float32 values, copies as float64, their products


class Limits(NamedTuple):
    """Sizes that keep a search within its bytes: products of a wave, hits kept, pairs scored at once, rows of a block."""

    products: int
    hits: int
    pairs: int
    rows: int


@dataclass(slots=True)
class DevicePairs:
    """The search on one device.

    device: name for `torch.device`. max_bytes: of memory there at most, apart from what torch and cuBLAS need for
    themselves. The vectors stay on the device between searches if they fit in a quarter of it; otherwise the rows of
    candidate pairs are copied there each time. On the host, a search holds only the pairs that it yields.
    """

    device: str
    max_bytes: int
    _held: tuple[Vectors, Tensor] | None = field(default=None, init=False)

    def search(
        self,
        left: tuple[Rows, Vectors],
        right: tuple[Rows, Vectors],
        vectors: Vectors,
        threshold: float,
        *,
        slack: float,
        same: bool,
    ) -> Iterator[Scored]:
        """Yields pairs (row of `left`, row of `right`), with all of a cosine of at least `threshold` among them.

        left, right: row numbers (M,) and sketches (M, R). vectors: (N, D), by row number. The product of two sketches, plus
        `slack`, must be at least the cosine of their vectors, and that of the vectors, too. If the sketches leave too many
        candidates, the vectors are used instead of them. same: `right` begins with the rows of `left`, and each pair is
        yielded once. Cosines are not rounded, and at least threshold - BELOW; their last digits depend on the device.
        Raises RuntimeError if torch may compute float32 products with less precision, ValueError if max_bytes is too small.
        """
        if torch.get_float32_matmul_precision() != "highest":
            raise RuntimeError("dedup: matrix products must have full float32 precision (no TF32)")
        if not len(left[0]) or not len(right[0]):
            return
        limits = self.limits(vectors.shape[1], vectors.shape[1])
        if right[1].shape[1] < vectors.shape[1] and self._dense(left[1], right[1], threshold - slack):
            left, right = (left[0], vectors[left[0]]), (right[0], vectors[right[0]])
        num = len(right[0]) + (0 if same else len(left[0]))
        fits = num * _row_bytes(right[1].shape[1]) <= self.max_bytes * SKETCHES
        columns = _Side.of(self.device, *right, resident=fits)
        rows = columns if same else _Side.of(self.device, *left, resident=fits)
        buffer = torch.empty(min(limits.products, _padded(len(left[0])) * columns.padded), device=self.device)
        hits = _Hits()
        for top, bottom, first, last in _blocks(len(left[0]), columns.padded, limits, same=same, fits=fits):
            wave = buffer[: (bottom - top) * (last - first)].view(bottom - top, last - first)
            torch.mm(rows.part(top, bottom), columns.part(first, last).T, out=wave)
            wave = wave.view(bottom - top, -1, SEGMENT)
            found = torch.nonzero(wave.amax(2) >= threshold - slack)  # here the host waits for the device
            for part in found.split(limits.hits):
                if hits.num + len(part) > limits.hits:
                    yield from self._pairs(hits, rows, columns, vectors, threshold, slack, limits.pairs, same)
                row, segment = part.unbind(1)
                hits.add(row + top, segment * SEGMENT + first, wave[row, segment])
        yield from self._pairs(hits, rows, columns, vectors, threshold, slack, limits.pairs, same)

    def _dense(self, left: Vectors, right: Vectors, least: float) -> bool:
        """Returns whether more than DENSE of the products of sketches are at least `least`; of few products, False."""
        if len(left) * len(right) < 4 * SAMPLE * SAMPLE:
            return False
        some = (side[np.linspace(0, len(side) - 1, SAMPLE).astype(np.int64)] for side in (left, right))
        rows, columns = (torch.from_numpy(np.array(part)).to(self.device) for part in some)
        num = 0
        for part in rows.split(max(1, int(self.max_bytes * WAVE / PRODUCT_BYTES) // SAMPLE)):
            num += int(torch.count_nonzero(part @ columns.T >= least))
        return num > DENSE * SAMPLE * SAMPLE

    def limits(self, width: int, sketch_width: int) -> Limits:
        """Returns the sizes for vectors and sketches of these widths. Raises ValueError if `max_bytes` is too small."""
        each = (
            PRODUCT_BYTES / WAVE,
            HIT_BYTES / HITS,
            VALUE_BYTES * width / SCORES,
            2 * _row_bytes(sketch_width) / SKETCHES,
        )
        found = Limits(*(int(self.max_bytes / of_one) for of_one in each))
        least = (SEGMENT * SEGMENT, 1, 1, SEGMENT)
        if any(got < wanted for got, wanted in zip(found, least, strict=True)):
            needed = max(math.ceil(of_one * wanted) for of_one, wanted in zip(each, least, strict=True))
            raise ValueError(
                f"dedup: {self.max_bytes:,} bytes of memory on {self.device} are too few to compare vectors of {width} "
                f"dimensions; at least {needed:,} are needed"
            )
        return found._replace(products=min(found.products, MAX_AREA))

    def _pairs(
        self,
        hits: _Hits,
        rows: _Side,
        columns: _Side,
        vectors: Vectors,
        threshold: float,
        slack: float,
        max_pairs: int,
        same: bool,
    ) -> Iterator[Scored]:
        """Removes all hits, and yields their pairs."""
        if not hits.num:
            return
        row, first, products = hits.taken()
        column = first[:, None] + torch.arange(SEGMENT, device=first.device)
        near = (products >= threshold - slack) & (column < len(columns.rows))
        if same:
            near &= column > row[:, None]
        del products, column
        hit, offset = torch.nonzero(near).unbind(1)
        for i, k in zip(hit.split(max_pairs), offset.split(max_pairs), strict=True):
            a, b = rows.numbers[row[i]], columns.numbers[first[i] + k]
            cosine = self._cosines(vectors, a, b)
            kept = torch.nonzero(cosine >= threshold - BELOW)[:, 0]
            yield a[kept].cpu().numpy(), b[kept].cpu().numpy(), cosine[kept].cpu().numpy()

    def _cosines(self, vectors: Vectors, a: Tensor, b: Tensor) -> Tensor:
        """Returns the cosine of each pair of row numbers, (P,) float64."""
        if vectors.nbytes <= self.max_bytes * VECTORS:
            known = self._resident(vectors)
            x, y = known[a], known[b]
        else:
            needed, place = torch.unique(torch.stack([a, b]), return_inverse=True)
            copied = torch.from_numpy(np.asarray(vectors[needed.cpu().numpy()])).to(self.device)
            x, y = copied[place[0]], copied[place[1]]
            del copied
        x, y = x.double(), y.double()
        return (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1)).sqrt()

    def _resident(self, vectors: Vectors) -> Tensor:
        if self._held is None or self._held[0] is not vectors:
            self._held = None  # frees the other vectors first
            self._held = vectors, _uploaded(vectors, len(vectors), vectors.shape[1], self.device)
        return self._held[1]


class _Hits:
    """Segments with a hit: row, first column, and products of each, on the device."""

    def __init__(self) -> None:
        self.num = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, row: Tensor, first: Tensor, products: Tensor) -> None:
        self.num += len(row)
        self._parts.append((row, first, products))

    def taken(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rows (H,), first columns (H,) and products (H, SEGMENT) of all hits, and removes them."""
        row, first, products = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        self.num, self._parts = 0, []
        return row, first, products


@dataclass(frozen=True, slots=True)
class _Side:
    """The rows on one side: row numbers `rows` (M,) and sketches (M, R).

    numbers: copy of `rows` on the device. resident: copy of the sketches there, with zeros to `padded` rows and a width
    that is a multiple of ALIGNED; None if they do not fit.
    """

    device: str
    rows: Rows
    sketches: Vectors
    numbers: Tensor
    resident: Tensor | None

    @classmethod
    def of(cls, device: str, rows: Rows, sketches: Vectors, *, resident: bool) -> _Side:
        numbers = torch.from_numpy(np.array(rows)).to(device)
        copied = (
            _uploaded(sketches, _padded(len(rows)), _aligned(sketches.shape[1]), device) if resident else None
        )
        return cls(device, rows, sketches, numbers, copied)

    @property
    def padded(self) -> int:
        return _padded(len(self.rows))

    def part(self, start: int, stop: int) -> Tensor:
        """Returns the sketches of rows `start` to `stop` on the device."""
        if self.resident is not None:
            return self.resident[start:stop]
        return _uploaded(
            self.sketches[start:stop], stop - start, _aligned(self.sketches.shape[1]), self.device
        )


def _blocks(
    num_rows: int, num_columns: int, limits: Limits, *, same: bool, fits: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Yields blocks (first row, end, first column, end) of at most `limits.products`; columns are multiples of SEGMENT.

    same: the blocks cover the upper triangle. fits: the sketches are on the device; otherwise blocks are squares, for few
    copies, with at most `limits.rows` on a side.
    """
    if fits:
        width = min(num_columns, _floor(limits.products // SEGMENT))
        wanted = max(MIN_HEIGHT, num_rows // TRIANGLE if same else num_rows)
    else:
        width = wanted = min(num_columns, _floor(min(math.isqrt(limits.products), limits.rows)))
    height = _floor(min(wanted, limits.products // width))
    for top in range(0, num_rows, height):
        for first in range(top if same else 0, num_columns, width):
            yield top, min(top + height, num_rows), first, min(first + width, num_columns)


def _padded(num: int) -> int:
    return -(-num // SEGMENT) * SEGMENT


def _floor(num: int) -> int:
    return max(SEGMENT, num // SEGMENT * SEGMENT)


def _aligned(width: int) -> int:
    return -(-width // ALIGNED) * ALIGNED


def _row_bytes(sketch_width: int) -> int:
    """Returns the bytes of a sketch and a row number on the device."""
    return 4 * _aligned(sketch_width) + 8


def _uploaded(values: Vectors, num: int, width: int, device: str) -> Tensor:
    """Returns a copy of `values` (M, W) on the device, with zeros to (num, width)."""
    copy = torch.zeros(num, width, device=device)
    for start in range(0, len(values), UPLOAD_ROWS):
        part = torch.from_numpy(np.array(values[start : start + UPLOAD_ROWS]))
        copy[start : start + len(part), : values.shape[1]] = part.to(device)
    return copy
