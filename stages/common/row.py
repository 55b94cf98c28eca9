"""The image row: one image with all its texts, their scores and their fate.

`id` is sha256 over (source, url or path, text, occurrence): it never changes with position, shard size or order of arrival.
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
        ("kept", pa.bool_()),  # null: no filter has looked at it
        ("why", pa.string()),  # why it was dropped: a short code
    ]
)
TEXTS = pa.list_(TEXT)
# Column `donors`, where texts of other rows were merged in: per text the ids of all rows it comes from, null for an own
# one. `vlpipe forget` goes by it; below the end of the list there are own ones only.
DONORS = pa.list_(pa.list_(pa.string()))

# Light columns every ingest stage writes; `image` is the encoded file, byte for byte as it came.
LISTED = pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])
IMAGE_FIELDS = (
    pa.field("sha256", pa.string()),
    pa.field("format", pa.string()),  # as Pillow names it: JPEG, PNG, ...
    pa.field("width", pa.int32()),  # after EXIF transpose
    pa.field("height", pa.int32()),
    heavy("image", pa.binary()),
)

# Rows of evaluation steps and of training losses; the results table and the report look for these schemas.
RESULTS = pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])
LOSSES = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def text(value: str, source: str, **more: Any) -> dict[str, Any]:
    """One entry of `texts`."""
    return {"text": value, "source": source, "model": None, "score": None, "kept": None, "why": None, **more}


def single_texts(values: Sequence[str], source: str) -> pa.ListArray:
    """`texts` of rows with one text each; an empty one gives none. Four times as fast as from dicts."""
    there = pa.array([value for value in values if value], pa.string())
    columns = {f.name: pa.nulls(len(there), f.type) for f in TEXT}
    columns |= {"text": there, "source": pa.array([source] * len(there), pa.string())}
    entries = pa.StructArray.from_arrays(list(columns.values()), fields=list(TEXT))
    offsets = np.cumsum([0, *(bool(value) for value in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, entries, type=TEXTS)


class ListIds:
    """Hands out the ids of a list's rows, a batch at a time; the occurrence number keeps exact repeats apart, whatever
    follows them in the list. It remembers at most 29 bytes per different row."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen = Occurrences()

    def of(self, urls: Sequence[str], texts: Sequence[str]) -> pa.StringArray:
        stems = [_stem(self._source, url, text) for url, text in zip(urls, texts, strict=True)]
        digests = [hashlib.sha256(stem + b"0").digest() for stem in stems]
        before = self._seen.count(b"".join(digests), ID_BYTES)
        for row in np.flatnonzero(before).tolist():
            digests[row] = hashlib.sha256(stems[row] + b"%d" % before[row]).digest()
        return hex_strings(b"".join(digests), ID_BYTES)


@dataclass
class RowIds:
    """The same ids, one at a time: for the few rows that are made of one video. It remembers the rows themselves."""

    source: str
    _seen: Counter[bytes] = field(default_factory=Counter)

    def next(self, url: str, text: str) -> str:
        stem = _stem(self.source, url, text)
        occurrence = self._seen[stem]
        self._seen[stem] += 1
        return hashlib.sha256(stem + b"%d" % occurrence).hexdigest()


def _stem(*parts: str) -> bytes:
    """What is hashed, but for the occurrence number. Rows whose NUL characters make it the same count as repeats."""
    return "".join(part.replace("\x00", "\x00\x00") + "\x00" for part in parts).encode(
        "utf-8", "surrogatepass"
    )


def hex_strings(data: bytes, size: int) -> pa.StringArray:
    """Each `size` bytes as a string of hex digits."""
    offsets = np.arange(0, 2 * len(data) + 1, 2 * size, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data.hex().encode())
    )
