"""The image row: one image with all its texts, their scores, and whether and why each text is dropped.

`id` is the sha256 of (source, url or path, text, occurrence): it does not depend on position, shard size or order.
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
        ("score", pa.float32()),  # P(match) by the filter
        ("kept", pa.bool_()),  # null: not judged by any filter yet
        ("why", pa.string()),  # short code of the reason it was dropped
    ]
)
TEXTS = pa.list_(TEXT)
# Column `donors`, written where texts of other rows are merged in: per text the ids of all rows it comes from, null for
# the row's own texts. `vlpipe forget` uses it. Texts beyond the end of the list are the row's own.
DONORS = pa.list_(pa.list_(pa.string()))

# Light columns that every ingest stage writes. `image` is the encoded file, unchanged.
LISTED = pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])
IMAGE_FIELDS = (
    pa.field("sha256", pa.string()),
    pa.field("format", pa.string()),  # as Pillow names it: JPEG, PNG, ...
    pa.field("width", pa.int32()),  # after EXIF transpose
    pa.field("height", pa.int32()),
    heavy("image", pa.binary()),
)

# Rows of evaluation steps and of training losses; the results table and the report recognise steps by these schemas.
RESULTS = pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])
LOSSES = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def text(value: str, source: str, **more: Any) -> dict[str, Any]:
    """Returns one entry of `texts`; `more` sets further fields, which are null by default."""
    return {"text": value, "source": source, "model": None, "score": None, "kept": None, "why": None, **more}


def single_texts(values: Sequence[str], source: str) -> pa.ListArray:
    """Build `texts` for rows with one text each; an empty text gives an empty list. 4 times as fast as from dicts."""
    there = pa.array([value for value in values if value], pa.string())
    columns = {f.name: pa.nulls(len(there), f.type) for f in TEXT}
    columns |= {"text": there, "source": pa.array([source] * len(there), pa.string())}
    entries = pa.StructArray.from_arrays(list(columns.values()), fields=list(TEXT))
    offsets = np.cumsum([0, *(bool(value) for value in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, entries, type=TEXTS)


class ListIds:
    """Computes the ids of a list's rows, a batch at a time. The occurrence number distinguishes exact repeats,
    independent of later rows. Memory: at most 29 bytes per distinct row."""

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
    """The same ids, one at a time, for the few rows made from one video. It keeps the hashed rows in memory."""

    source: str
    _seen: Counter[bytes] = field(default_factory=Counter)

    def next(self, url: str, text: str) -> str:
        """Returns the id of the next row."""
        stem = _stem(self.source, url, text)
        occurrence = self._seen[stem]
        self._seen[stem] += 1
        return hashlib.sha256(stem + b"%d" % occurrence).hexdigest()


def _stem(*parts: str) -> bytes:
    """The bytes to hash, before the occurrence number is appended. Rows with equal bytes (NUL characters) are repeats."""
    return "".join(part.replace("\x00", "\x00\x00") + "\x00" for part in parts).encode(
        "utf-8", "surrogatepass"
    )


def hex_strings(data: bytes, size: int) -> pa.StringArray:
    """Returns each `size` bytes of `data` as a string of hex digits."""
    offsets = np.arange(0, 2 * len(data) + 1, 2 * size, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data.hex().encode())
    )
