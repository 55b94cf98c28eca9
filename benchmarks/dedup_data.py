"""Made embeddings with planted pairs: what `dedup.py` searches. Everything follows from (kind, num_rows, seed).

An image embedding has a mean direction shared by all, topics within topics of very unequal size, and a few
strong directions. `web` has all three: two levels of topics with Zipf sizes, a common mean, and a spectrum that falls as
1 / rank; two rows have a cosine of about 0.35, two of one fine topic of about 0.7. `loose` has none: it is Gaussian noise in
all directions around 40 weak centres, which no clustering can cut well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
NUM_TOPICS, NUM_FINE = 200, 20_000
CHUNK_ROWS = 50_000
MOVES = {"all directions": 0.0, "as photo edits": 0.5, "strongest directions": 1.0}


@dataclass(frozen=True)
class Planted:
    """vectors: (N, D), unit norm; pairs: (P, 2) rows with about the planted cosine; kinds: (P,) how they were moved."""

    vectors: Vectors
    pairs: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]


def planted(
    kind: str, num_rows: int, dim: int, *, cosine: float, share: float = 0.02, seed: int = 0
) -> Planted:
    """`share` of the rows are moved copies of others, at exactly `cosine` before rounding to float32.

    A third each is moved evenly in all directions; as edits move photos, half-way to the spectrum of the data (one-cluster
    search finds as many of them as of 1,021 edited Flickr8k photos at cosine 0.88 to 0.92); and within that spectrum.
    """
    rng = np.random.default_rng([seed, num_rows, dim])
    num_pairs = round(num_rows * share)
    num_base = num_rows - num_pairs
    spectrum = np.ones(dim) if kind == "loose" else 1 / np.sqrt(np.arange(1, dim + 1))
    spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
    vectors = np.empty((num_rows, dim), np.float32)
    centres = _centres(rng, kind, dim, spectrum)
    for start in range(0, num_base, CHUNK_ROWS):
        part = vectors[start : min(start + CHUNK_ROWS, num_base)]
        part[:] = centres[_zipf(rng, len(centres), len(part))]
        part += (0.55 if kind == "web" else 1.0) * _noise(rng, len(part), spectrum)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    originals = rng.choice(num_base, num_pairs, replace=False)
    moved = rng.integers(0, len(MOVES), num_pairs)
    for start in range(0, num_pairs, CHUNK_ROWS):
        at = slice(start, min(start + CHUNK_ROWS, num_pairs))
        away = rng.standard_normal((len(originals[at]), dim), dtype=np.float32)
        away *= np.stack([spectrum**power for power in MOVES.values()])[moved[at]]
        vectors[num_base + start : num_base + at.stop] = _moved(vectors[originals[at]], away, cosine)
    order = rng.permutation(num_rows)  # row r of the result is row order[r] of what was made
    place = np.empty_like(order)
    place[order] = np.arange(num_rows)
    pairs = np.stack([place[originals], place[num_base:]], axis=1)
    return Planted(vectors[order], np.sort(pairs, axis=1), np.array(list(MOVES))[moved])


def _centres(rng: np.random.Generator, kind: str, dim: int, spectrum: Vectors) -> Vectors:
    if kind == "loose":
        return 0.8 * _noise(rng, 40, spectrum)
    mean = 0.6 * _noise(rng, 1, spectrum)
    topics = 0.45 * _noise(rng, NUM_TOPICS, spectrum)
    fine = 0.45 * _noise(rng, NUM_FINE, spectrum)
    return mean + topics[_zipf(rng, NUM_TOPICS, NUM_FINE)] + fine


def _noise(rng: np.random.Generator, num: int, spectrum: Vectors) -> Vectors:
    """(num, D) of expected length 1."""
    return rng.standard_normal((num, len(spectrum)), dtype=np.float32) * spectrum


def _zipf(rng: np.random.Generator, num_classes: int, num: int) -> npt.NDArray[np.int64]:
    weights = 1 / np.arange(1, num_classes + 1) ** 0.7
    return rng.choice(num_classes, num, p=weights / weights.sum())


def _moved(x: Vectors, away: Vectors, cosine: float) -> Vectors:
    away = away - (away * x).sum(1, keepdims=True) * x
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return cosine * x + np.float32((1 - cosine**2) ** 0.5) * away
