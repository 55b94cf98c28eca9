"""Near-duplicate texts: candidates by MinHash LSH (`rensa`), each verified by its exact Jaccard similarity.

LSH misses a pair with a known probability; false candidates fail the exact check. rensa is used rather than datasketch:
signing and searching took 0.5 s for 50,000 captions (datasketch 2.0: 5.3 s for 20,000), and it does not need scipy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.text_dedup.forms import jaccard, shingles

NUM_PERM = 120  # hash functions per signature; a number with many divisors allows many band sizes
MIN_RECALL = 0.999  # of pairs exactly at the threshold
SEED = 1
BLOCK_ROWS = 4096  # texts per call of rensa
NOT_INSTALLED = "text_dedup.texts with a threshold needs rensa: pip install 'vlpipe[web]'"


def num_bands(threshold: float) -> int:
    """Returns the smallest number of bands that finds a pair at the threshold with probability MIN_RECALL or more.

    Fewer bands give fewer candidates to check. NUM_PERM if no number of bands is enough.
    A pair of Jaccard similarity j shares one of b bands of r hashes with probability 1 - (1 - j^r)^b.
    """
    for rows in (12, 10, 8, 6, 5, 4, 3, 2):
        bands = NUM_PERM // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_RECALL:
            return bands
    return NUM_PERM


def near_duplicates(forms: Sequence[str], threshold: float) -> Iterator[tuple[int, float]]:
    """Yields, per normal form in order, the index of the most similar earlier kept form, and their Jaccard similarity.

    Greedy: a form is kept, and yields (-1, 1.0), if no earlier kept form reaches the threshold. Of equally similar forms
    the first is used. In a chain A~B~C of similar forms, B is dropped and C is kept. Raises VlpipeError without rensa.
    """
    rensa = import_rensa()
    index = rensa.RMinHashLSH(threshold=threshold, num_perm=NUM_PERM, num_bands=num_bands(threshold))
    for start in range(0, len(forms), BLOCK_ROWS):
        block = [shingles(form) for form in forms[start : start + BLOCK_ROWS]]
        signatures = rensa.RMinHash.from_token_sets([sorted(s) for s in block], num_perm=NUM_PERM, seed=SEED)
        for place, (mine, signature) in enumerate(zip(block, signatures, strict=True), start):
            witness, similarity = _nearest(mine, forms, index.query(signature))
            if witness >= 0 and similarity >= threshold:
                yield witness, similarity
            else:
                index.insert(place, signature)
                yield -1, 1.0


def _nearest(mine: frozenset[str], forms: Sequence[str], candidates: Sequence[int]) -> tuple[int, float]:
    found = ((jaccard(mine, shingles(forms[place])), -place) for place in candidates)
    similarity, minus = max(found, default=(0.0, 1))
    return -minus, similarity


def import_rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise VlpipeError(f"{NOT_INSTALLED} ({error})") from error
    return rensa
