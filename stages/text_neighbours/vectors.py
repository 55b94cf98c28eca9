"""tf-idf vectors of texts over hashed words.

A word's weight is its count times log((1 + N) / (1 + n)) + 1, n of N texts having it; vectors have unit length. This is the
smoothed form of scikit-learn's TfidfVectorizer.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"[^\W_]+")
BUCKETS = 1 << 20  # words with the same hash count as one: of 100,000 words, about 1 in 20 shares its bucket
MAX_TERMS = 64  # different words of a text that count, the first ones

Terms = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # buckets, ascending, and counts or weights


def counts_of(text: str) -> Terms:
    """Returns the buckets of a text's words and how often each occurs. Case does not matter."""
    found: Counter[int] = Counter()
    for word in WORD.finditer(text.lower()):
        bucket = zlib.crc32(word.group().encode("utf-8", "surrogatepass")) % BUCKETS
        if bucket in found or len(found) < MAX_TERMS:
            found[bucket] += 1
    buckets = sorted(found)
    return np.array(buckets, np.int64), np.array([found[b] for b in buckets], np.float32)


def weighted(counts: Terms, num_with: npt.NDArray[np.int64], num_texts: int) -> Terms:
    """Returns the vector of a text. num_with: (BUCKETS,), in how many of `num_texts` texts each bucket occurs."""
    buckets, times = counts
    weights = times * (np.log((1 + num_texts) / (1 + num_with[buckets])) + 1)
    return buckets, (weights / max(1e-12, float(np.linalg.norm(weights)))).astype(np.float32)


def frequencies(texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], int]:
    """Returns (in how many texts each bucket occurs (BUCKETS,), number of texts)."""
    num_with, num = np.zeros(BUCKETS, np.int64), 0
    for text in texts:
        num_with[counts_of(text)[0]] += 1
        num += 1
    return num_with, num
