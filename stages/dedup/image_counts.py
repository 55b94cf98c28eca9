"""How many rows, hosts and texts share an image.

An image under many different texts describes none of them: it is a placeholder ("image not available"), a logo or a spacer.
ALIGN drops images with more than 1,000 texts (C. Jia et al., "Scaling Up Visual and Vision-Language Representation Learning
With Noisy Text Supervision", 2021, https://arxiv.org/abs/2102.05918).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.stage import Dataset

COUNTS = ("image_rows", "image_hosts", "image_texts")
UNKNOWN = -1  # the rows lack the column

Counts = npt.NDArray[np.int64]  # (N,)
Hashes = npt.NDArray[np.uint64]  # (N,), 0: the row has none


def image_counts(inputs: Sequence[Dataset], groups: npt.NDArray[np.int64]) -> dict[str, Counts]:
    """Returns COUNTS -> (N,): for each row, in input order, the counts of its group.

    image_rows: rows in the group. image_hosts: distinct hosts of their URLs; UNKNOWN unless all inputs have `url`.
    image_texts: distinct sets of texts; case and whitespace are ignored, as are rows without a text; UNKNOWN unless all
    inputs have `texts`. A row with these columns from an earlier dedup counts as `image_rows` rows, and its group has at
    least its `image_hosts` and `image_texts`.
    groups: (N,), any number per row, equal for rows of one group. Takes 24 bytes per row, and 32 more while it sorts.
    """
    _, groups = np.unique(groups, return_inverse=True)
    hosts, texts = (np.zeros(len(groups), np.uint64) for _ in range(2))
    known = [all(name in data.schema.names for data in inputs) for name in ("url", "texts")]
    earlier = {name: np.ones(len(groups), np.int64) for name in COUNTS}
    start = 0
    for data in inputs:
        names = [name for name in ("id", "url", "texts", *COUNTS) if name in data.schema.names]
        for rows in data.batches(names):
            part = slice(start, start + rows.num_rows)
            start = part.stop
            if known[0]:
                hosts[part] = _hashes([_host(url) for url in rows["url"].to_pylist()])
            if known[1]:
                texts[part] = _hashes([_words(each) for each in rows["texts"].to_pylist()])
            for name in COUNTS:
                if name in names:
                    earlier[name][part] = np.asarray(rows[name].combine_chunks().fill_null(1))
    found = [np.bincount(groups, earlier["image_rows"]).astype(np.int64)]
    for name, values, is_known in zip(COUNTS[1:], (hosts, texts), known, strict=True):
        most = np.zeros(len(found[0]), np.int64)
        has = values != 0
        np.maximum.at(most, groups[has], earlier[name][has])
        found.append(np.maximum(most, _distinct(groups, values, len(most))) if is_known else most + UNKNOWN)
    return {name: each[groups] for name, each in zip(COUNTS, found, strict=True)}


def with_counts(decisions: pa.Table, counts: dict[str, Counts]) -> pa.Table:
    """Fills the columns COUNTS of a table of decisions; null where UNKNOWN."""
    for name, values in counts.items():
        column = pa.chunked_array([pa.array(values, mask=values == UNKNOWN)])
        decisions = decisions.set_column(decisions.schema.get_field_index(name), name, column)
    return decisions


def _distinct(groups: npt.NDArray[np.int64], values: Hashes, num_groups: int) -> Counts:
    """Returns the number of distinct values other than 0 in each group, (num_groups,)."""
    groups, values = groups[values != 0], values[values != 0]
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    first = np.ones(len(groups), np.bool_)
    first[1:] = (groups[1:] != groups[:-1]) | (values[1:] != values[:-1])
    return np.bincount(groups[first], minlength=num_groups)


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""


def _words(texts: Sequence[dict[str, str]] | None) -> str:
    return "\n".join(sorted({" ".join((t["text"] or "").casefold().split()) for t in texts or ()} - {""}))


def _hashes(values: Sequence[str]) -> Hashes:
    """Returns 8-byte hashes, 0 for an empty string."""
    digests = b"".join(
        hashlib.blake2b(v.encode("utf-8", "surrogatepass"), digest_size=8).digest() if v else bytes(8)
        for v in values
    )
    return np.frombuffer(digests, np.uint64)
