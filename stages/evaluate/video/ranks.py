"""Ranks of the right answer among candidates, ties counted against it, and what they say: recall at k, median rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

RECALL_AT = (1, 5, 10)
BLOCK_VALUES = 1 << 24  # scores at a time: 64 MB

Scores = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def ranks(queries: Scores, candidates: Scores, right: Ints, groups: tuple[Ints, Ints] | None = None) -> Ints:
    """Returns the rank (Q,), from 1, of the right candidate of each query by dot product: those that score higher, and those
    that score the same, come before it.

    queries: (Q, E); candidates: (C, E); right: (Q,) index of the right candidate. groups: of the queries and the candidates;
    only candidates of the query's own group compete. A score that is not a number counts as the highest of its query.
    """
    found = np.empty(len(queries), np.int64)
    size = max(1, BLOCK_VALUES // max(1, len(candidates)))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        scores = queries[part] @ candidates.T
        own = np.take_along_axis(scores, right[part, None], axis=1)
        before = ~(scores < own)  # the right one itself included, and nan
        if groups is not None:
            before &= groups[0][part, None] == groups[1][None]
        found[part] = before.sum(1)
    return found


def figures(prefix: str, found: Ints) -> list[dict[str, Any]]:
    """Returns RESULTS rows of ranks: `r@1`, `r@5`, `r@10` as fractions from 0 to 1, and `medr`, the median rank."""
    values: Mapping[str, float] = {
        **{f"r@{k}": float((found <= k).mean()) for k in RECALL_AT},
        "medr": float(np.median(found)),
    }
    return [{"name": f"{prefix}{name}", "value": v, "num_rows": len(found)} for name, v in values.items()]
