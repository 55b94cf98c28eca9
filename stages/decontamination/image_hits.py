"""Finds rows of a block whose image is in an evaluation set, by exhaustive search in blocks of items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vlpipe.stages.common.phash import colour_gap
from vlpipe.stages.dedup.looks import Looks

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

BLOCK_ITEMS = 16_384  # evaluation items compared at once: 512 x 16,384 cosines take 32 MB
SCORE_PAIRS = 8192  # scored at once; with a collapsed encoder all pairs are candidates
SLACK = 1e-4  # tolerance; the error of a float32 product is about 1e-6
DECIMALS = 6  # of a cosine; further digits depend on the machine


class Hit(NamedTuple):
    """A match of an image or text with an evaluation item; fields as in MATCHES."""

    how: str  # same_bytes | picture | embedding | same_text | ngrams
    witness: str | None  # name of the evaluation item
    similarity: float | None


def by_bytes(sha256: Sequence[str | None], items: dict[str, str]) -> dict[int, Hit]:
    """Returns row -> hit, for rows with the bytes of an evaluation image. items: sha256 of such an image -> its name."""
    known = ((row, items[s]) for row, s in enumerate(sha256) if s is not None and s in items)
    return {row: Hit("same_bytes", name, 1.0) for row, name in known}


def by_picture(
    looks: Looks, items: Looks, names: Sequence[str], *, max_distance: int, max_colour_gap: int
) -> dict[int, Hit]:
    """Returns row -> the item with the nearest hash, among those within both max_distance and max_colour_gap."""
    best = _Best()
    rows = np.flatnonzero(looks.seen)
    for start in range(0, len(names), BLOCK_ITEMS):
        block = slice(start, start + BLOCK_ITEMS)
        distance = np.bitwise_count(looks.hashes[rows, None] ^ items.hashes[None, block])  # (B, M)
        near, item = np.nonzero((distance <= max_distance) & items.seen[block])
        row, similarity = rows[near], 1 - distance[near, item] / 64
        gap = colour_gap(looks.colours, items.colours, row, start + item)
        same = gap <= max_colour_gap
        best.add(row[same], start + item[same], similarity[same])
    return best.hits("picture", names)


def by_vector(vectors: Floats, items: Floats, names: Sequence[str], threshold: float) -> dict[int, Hit]:
    """Returns row -> the item with the highest cosine, at least `threshold`. vectors (B, D), items (M, D), unit norm.

    Candidates are found in float32 and scored in float64, so that the result does not depend on blocks or threads.
    """
    best = _Best()
    for start in range(0, len(items), BLOCK_ITEMS):
        block = items[start : start + BLOCK_ITEMS]
        cosines = vectors @ block.T  # (B, M)
        bar = np.maximum(cosines.max(axis=1, initial=-1), threshold) - SLACK
        row, item = np.nonzero(cosines >= bar[:, None])
        parts = (slice(at, at + SCORE_PAIRS) for at in range(0, len(row), SCORE_PAIRS))
        exact = np.concatenate([np.empty(0), *(_cosine(vectors[row[p]], block[item[p]]) for p in parts)])
        near = exact >= threshold
        best.add(row[near], start + item[near], exact[near])
    return best.hits("embedding", names)


def _cosine(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: npt.NDArray[np.float64] = np.minimum(np.round((x * y).sum(axis=1) / lengths, DECIMALS), 1.0)
    return found


class _Best:
    """Collects, per row, the item with the highest similarity; ties go to the first item."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, int]] = {}

    def add(self, rows: Places, items: Places, similarity: npt.NDArray[np.float64]) -> None:
        order = np.lexsort((items, -similarity, rows))
        _, first = np.unique(rows[order], return_index=True)
        best = order[first]  # one per row, however many items match it
        for row, item, alike in zip(
            rows[best].tolist(), items[best].tolist(), similarity[best].tolist(), strict=True
        ):
            self._found[row] = max(self._found.get(row, (-1.0, 0)), (alike, -item))

    def hits(self, how: str, names: Sequence[str]) -> dict[int, Hit]:
        found: Iterator[tuple[int, tuple[float, int]]] = iter(self._found.items())
        return {row: Hit(how, names[-minus], alike) for row, (alike, minus) in found}
