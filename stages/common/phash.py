"""Perceptual hash of an image (64 bits, as `imagehash.phash`), and an exact search for pairs of similar hashes.

pHash sees only grey levels: a red and a blue ball in the same place get the same hash. A coarse colour grid is
therefore compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

SIDE = 32  # the DCT input is SIDE x SIDE pixels
LOW = 8  # the LOW x LOW lowest DCT coefficients are used; both as imagehash's defaults
GRID = 4  # the colour grid is GRID x GRID cells
# Contrast and brightness of an edit that keeps the subject, at most; see benchmarks/dedup_colours.md
MAX_GAIN = 1.4
MAX_SHIFT = 64  # of 255
MIN_STD = 2.0  # grey levels; the hash of a flatter image (a placeholder, a white page) is meaningless
MAX_DISTANCE = 15  # differing bits, of 64
BAND_BITS = 16
NUM_BANDS = 64 // BAND_BITS
MAX_PAIRS = 10_000_000  # pairs found in total: 640 MB
MAX_CANDIDATES = 4_000_000  # pairs compared at a time: 64 MB of row numbers


class TooMany(Exception):
    """Raised by `pairs_within` if there are more pairs than its limit; most likely the threshold is wrong."""


def grey(image: Image.Image) -> Bytes:
    """Returns the image as (32, 32) uint8 grey levels, resized by Lanczos as in imagehash."""
    from PIL import Image

    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def colour_grid(image: Image.Image) -> Bytes:
    """Returns (48,) uint8: the mean red, green and blue of 4 x 4 cells."""
    from PIL import Image

    return np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)).reshape(-1)


def colour_gap(
    left: Bytes, right: Bytes, a: Places, b: Places, block: int = 20_000
) -> npt.NDArray[np.float64]:
    """Returns (P,): for each of P pairs, the max difference between the two colour grids, lighting evened out, 0 to 255.

    Lighting is a gain (1 / MAX_GAIN to MAX_GAIN) and a shift of the mean (at most MAX_SHIFT), the same for all cells and
    channels, fitted by least squares: other brightness and contrast keep the subject, another hue changes it. Each grid
    is fitted to the other in turn; the larger of the two differences counts.
    left: (N, 48), right: (M, 48), rows from `colour_grid`. a, b: (P,), the row of `left` and of `right` of each pair.
    """
    gaps = [np.empty(0)]
    for start in range(0, len(a), block):
        x, y = (
            left[a[start : start + block]].astype(np.int64),
            right[b[start : start + block]].astype(np.int64),
        )
        cells = x.shape[1]
        shift = x.sum(axis=1, keepdims=True) - y.sum(axis=1, keepdims=True)
        shift -= np.clip(shift, -cells * MAX_SHIFT, cells * MAX_SHIFT)  # what lighting does not explain
        x, y = (
            cells * each - each.sum(axis=1, keepdims=True) for each in (x, y)
        )  # whole numbers: sums are exact
        both = (x * y).sum(axis=1, keepdims=True)
        gap = np.maximum(_unlit(x, y, both, shift), _unlit(y, x, both, -shift)) / cells
        gaps.append(np.minimum(gap, 255.0))
    return np.concatenate(gaps)


def _unlit(x: Places, y: Places, both: Places, shift: Places) -> npt.NDArray[np.float64]:
    """Returns (P,): max of |gain * x - y + shift| with the best gain, for P pairs of grids of C values.

    x, y: (P, C), each row with mean 0. both: (P, 1), the sum of x * y. shift: (P, 1), what lighting does not explain.
    """
    own = (x * x).sum(axis=1, keepdims=True)
    gain = np.clip(both / np.maximum(own, 1), 1 / MAX_GAIN, MAX_GAIN)
    found: npt.NDArray[np.float64] = np.abs(gain * x - y + shift).max(axis=1)
    return found


def has_texture(greys: Bytes) -> npt.NDArray[np.bool_]:
    """(B, 32, 32) -> (B,): whether an image has enough contrast for its hash to be meaningful."""
    found: npt.NDArray[np.bool_] = greys.astype(np.float64).std(axis=(1, 2)) >= MIN_STD
    return found


def hash_greys(greys: Bytes) -> Hashes:
    """(B, 32, 32) -> (B,): 64 bits, which of the 8 x 8 lowest DCT-II coefficients lie above their median."""
    k, n = np.arange(LOW)[:, None], np.arange(SIDE)[None, :]
    basis = 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE))  # (8, 32)
    values = greys.astype(np.float64)
    mean = values.mean(axis=(1, 2), keepdims=True)  # exact: a sum of integers over 1024
    low = basis @ (values - mean) @ basis.T  # (B, 8, 8)
    low[:, 0, 0] += 4 * SIDE * SIDE * mean[:, 0, 0]
    low = np.round(low, 6).reshape(
        -1, LOW * LOW
    )  # rounding noise must not decide coefficients that are exactly zero in theory
    above = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").reshape(-1).astype(np.uint64)


def pairs_within(
    hashes: Hashes, max_distance: int, limit: int = MAX_PAIRS
) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
    """Returns all pairs (a, b, number of differing bits) with a < b and distance <= `max_distance`, sorted by (a, b).

    Exact without comparing all pairs: at least one of four 16-bit bands differs in at most `max_distance // 4`
    bits (pigeonhole), so only rows with such a band are compared (multi-index hashing, Norouzi et al. 2012,
    https://arxiv.org/abs/1307.2982). Raises TooMany if there are more than about `limit` pairs, ValueError if
    `max_distance` is not in 0 to MAX_DISTANCE.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance must be from 0 to {MAX_DISTANCE} (of 64 bits), got {max_distance}")
    found, total = [], 0
    for a, b in _candidates(hashes, max_distance // NUM_BANDS):
        found.append(_near(a, b, hashes, max_distance))
        total += len(found[-1][0])
        if total > limit * NUM_BANDS:  # a pair is found in up to four bands
            raise TooMany
    num = np.int64(max(len(hashes), 1))
    keys = np.unique(np.concatenate([np.empty(0, np.int64), *(a * num + b for a, b in found)]))
    a, b = keys // num, keys % num
    return a, b, np.bitwise_count(hashes[a] ^ hashes[b])


def _near(a: Places, b: Places, hashes: Hashes, max_distance: int) -> tuple[Places, Places]:
    near = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_distance
    return np.minimum(a[near], b[near]), np.maximum(a[near], b[near])


def _candidates(hashes: Hashes, radius: int) -> Iterator[tuple[Places, Places]]:
    """Yields, in bounded blocks, the pairs of rows with a band that differs in at most `radius` bits, once per such band."""
    for band in range(NUM_BANDS):
        bits = ((hashes >> np.uint64(band * BAND_BITS)) & np.uint64(0xFFFF)).astype(np.uint16)
        order = np.argsort(bits, kind="stable").astype(np.int64)
        bits = bits[order]
        for mask in _masks(radius):
            first, count = _partners(bits, mask)
            yield from _expand(order, first, count)


def _partners(bits: npt.NDArray[np.uint16], mask: np.uint16) -> tuple[Places, Places]:
    """Returns, for each of the sorted values `bits`, the first position and the number of its partners.

    The partners of a value differ from it in exactly the bits of `mask`. Each pair is counted at one of its two values; the
    number at the other is 0.
    """
    end = np.searchsorted(bits, bits ^ mask, side="right")
    if mask == 0:
        first = np.arange(1, len(bits) + 1)
        return first, end - first
    first = np.searchsorted(bits, bits ^ mask, side="left")
    lower = bits < bits ^ mask
    return first, (end - first) * lower


def _masks(radius: int) -> list[np.uint16]:
    flips = [f for r in range(radius + 1) for f in combinations(range(BAND_BITS), r)]
    return [np.uint16(sum(1 << bit for bit in flip)) for flip in flips]


def _expand(order: Places, first: Places, count: Places) -> Iterator[tuple[Places, Places]]:
    """Yields pairs of rows: the row at sorted position p with those at positions first[p], ..., first[p] + count[p] - 1."""
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + MAX_CANDIDATES, side="right")))
        counts = count[start:stop]
        place = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[place], order[np.repeat(first[start:stop], counts) + within]
        start = stop
