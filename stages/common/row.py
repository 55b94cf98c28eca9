"""Columns of the image row: one image with all its texts, their scores, and whether and why each text is dropped.

`id` is the SHA-256 of (source, url or path, text, number of earlier rows with the same three), so it does not depend on
position, shard size, or the order of different rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import heavy
from vlpipe.stages.common.occurrences import Occurrences

ID_BYTES = 32

TEXT = pa.struct(
    [
        ("text", pa.string()),
        ("source", pa.string()),  # web | synth | human
        ("model", pa.string()),  # digest of the captioner's weights, for synth
        ("score", pa.float32()),  # P(match) from the ITM filter
        ("kept", pa.bool_()),  # null: no filter was applied yet
        ("why", pa.string()),  # code of the reason it was dropped
    ]
)
TEXTS = pa.list_(TEXT)
# Column `donors`, written by stages that merge texts of other rows into a row: for each text, the ids of all rows it
# comes from, or null for the row's own text. The list may be shorter than `texts`: the remaining texts are the row's own.
# `vlpipe forget` uses it.
DONORS = pa.list_(pa.list_(pa.string()))

# LISTED: columns before images are read. IMAGE_FIELDS: columns added with the image; `image` is the encoded file.
LISTED = pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])
IMAGE_FIELDS = (
    pa.field("sha256", pa.string()),
    pa.field("format", pa.string()),  # as Pillow names it: JPEG, PNG, ...
    pa.field("width", pa.int32()),  # in pixels, after EXIF orientation is applied
    pa.field("height", pa.int32()),
    heavy("image", pa.binary(), is_image=True),
)

# Columns of evaluation results and of training losses; the results table and the report find steps by these schemas.
RESULTS = pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])
LOSSES = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def text(value: str, source: str, **more: Any) -> dict[str, Any]:
    """Returns one entry of `texts`; `more` sets further fields, which are null by default."""
    return {"text": value, "source": source, "model": None, "score": None, "kept": None, "why": None, **more}


class ListIds:
    """Computes the ids of a list's rows, a batch at a time. Equal rows get different ids, because the number of equal
    rows before each is part of its hash. Memory: at most 29 bytes per distinct row."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen = Occurrences()

    def of(self, urls: Sequence[str], texts: Sequence[str]) -> pa.StringArray:
        """Returns the ids of the next rows of the list; call it once per batch, in list order."""
        stems = [_stem(self._source, url, text) for url, text in zip(urls, texts, strict=True)]
        digests = [hashlib.sha256(stem + b"0").digest() for stem in stems]
        before = self._seen.count(b"".join(digests), ID_BYTES)
        for row in np.flatnonzero(before).tolist():
            digests[row] = hashlib.sha256(stems[row] + b"%d" % before[row]).digest()
        return hex_strings(b"".join(digests), ID_BYTES)


@dataclass
class RowIds:
    """Computes the same ids as ListIds, one at a time, for the few rows of a video. Keeps all rows' texts in memory."""

    source: str
    _seen: Counter[bytes] = field(default_factory=Counter)

    def next(self, url: str, text: str) -> str:
        """Returns the id of the next row."""
        stem = _stem(self.source, url, text)
        occurrence = self._seen[stem]
        self._seen[stem] += 1
        return hashlib.sha256(stem + b"%d" % occurrence).hexdigest()


def _stem(*parts: str) -> bytes:
    """Returns the bytes to hash, before the number of equal rows is appended.

    Rows that differ only in the position of NUL characters may give the same bytes; they then count as equal rows.
    """
    return "".join(part.replace("\x00", "\x00\x00") + "\x00" for part in parts).encode(
        "utf-8", "surrogatepass"
    )


def hex_strings(data: bytes, size: int) -> pa.StringArray:
    """Returns B strings of 2 * `size` hex digits. data: B values of `size` bytes each, one behind the other."""
    offsets = np.arange(0, 2 * len(data) + 1, 2 * size, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data.hex().encode())
    )
