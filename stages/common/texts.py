"""Flattens the texts of a batch into one column, so that Arrow functions apply to all at once; writes results back.

Also `unescape` for HTML entities and `normalized` for Unicode, neither of which fails or takes long for hostile texts.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.row import TEXT, TEXTS

LAST_MARK = 0x20000  # no character from here on decomposes into combining marks
Mask = npt.NDArray[np.bool_]
ZEROS = re.compile(r"&#([xX]?)0+(?=[0-9a-fA-F])")
HUGE = re.compile(r"&#(?:\d{8,}|[xX][0-9a-fA-F]{8,});?")  # beyond the highest code point


def unescape(text: str) -> str:
    """Decodes HTML entities once, as `html.unescape`, but without its ValueError for a number of more than 4,300 digits."""
    return html.unescape(HUGE.sub("\ufffd", ZEROS.sub(r"&#\1", text)))


class FlatTexts:
    """The `texts` of N rows as M entries. lengths: (N,), texts per row, 0 for null. row: (M,), row number of each text."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._lists = as_array(column)
        self.entries: pa.StructArray = self._lists.flatten()  # (M,)
        self.lengths = np.asarray(pc.fill_null(pc.list_value_length(self._lists), 0))
        self.row = np.repeat(np.arange(len(self.lengths)), self.lengths)

    def field(self, name: str) -> pa.Array:
        """Returns (M,): one field of each text."""
        return pc.struct_field(self.entries, name)

    def still_in(self, sources: Sequence[str]) -> Mask:
        """Returns a mask (M,): True for texts that are not dropped and whose `source` is one of `sources`."""
        ours = to_mask(pc.is_in(self.field("source"), pa.array(sources, pa.string())))
        return ours & self.kept()

    def kept(self) -> Mask:
        """Returns a mask (M,): True for texts that are not dropped, including those that no filter has seen."""
        return np.asarray(pc.fill_null(self.field("kept"), True).to_numpy(zero_copy_only=False))

    def aligned(self, name: str, column: pa.ChunkedArray) -> pa.Array:
        """Returns (M,): the values of a list column of the same N rows, which must have one value per text.

        Raises VlpipeError, with the column's `name`, if a row has more or fewer values than texts.
        """
        lists = as_array(column)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        if (lengths != self.lengths).any():
            at = int(np.flatnonzero(lengths != self.lengths)[0])
            raise VlpipeError(
                f"column {name!r} has {lengths[at]} value(s) for {self.lengths[at]} text(s) in a row: texts were added or "
                "removed after the column was computed; compute it in a step after that change"
            )
        return lists.flatten()

    def nested(self, values: pa.Array) -> pa.Array:
        """Returns `values` (M,), one per text, as a list column: each row's list holds those of its texts."""
        return pa.ListArray.from_arrays(self._offsets(), values)

    def drop(self, rows: pa.Table, why: pa.Array) -> pa.Table:
        """Returns `rows` with kept=False and this reason for texts that have one in `why` (M,); null changes nothing."""
        if why.null_count == len(why):
            return rows
        dropped = why.is_valid()
        new = {
            "kept": pc.if_else(dropped, False, self.field("kept")),
            "why": pc.if_else(dropped, why, self.field("why")),
        }
        return self.replace(rows, **new)

    def replace(self, rows: pa.Table, **fields: pa.Array) -> pa.Table:
        """Returns `rows`, whose `texts` this was made from, with fields of the texts replaced: score=(M,) floats."""
        columns = [fields.get(f.name, self.field(f.name)) for f in TEXT]
        entries = pa.StructArray.from_arrays(columns, fields=list(TEXT))
        mask = self._lists.is_null() if self._lists.null_count else None
        lists = pa.ListArray.from_arrays(self._offsets(), entries, mask=mask).cast(TEXTS)
        return rows.set_column(rows.schema.get_field_index("texts"), "texts", lists)

    def _offsets(self) -> pa.Array:
        return pa.array(np.concatenate([[0], np.cumsum(self.lengths)]), pa.int32())


def texts_of(inputs: Sequence[Dataset], source: str) -> Iterator[str]:
    """Yields the texts of one source, of all rows in order, dropped ones too."""
    for data in inputs:
        for table in data.batches(["texts"]):
            flat = FlatTexts(table["texts"])
            wanted = pc.equal(flat.field("source"), source)
            yield from flat.field("text").filter(wanted).to_pylist()


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """Returns `unicodedata.normalize(form, text)`, in O(n log n) time for n characters.

    CPython sorts consecutive combining marks by insertion: 80,000 of them in alternating order take 3 seconds. Here a long
    run of marks is sorted first. Runs in real texts have less than 30 (Unicode Standard Annex #15, 13).
    """
    if not text.isascii():
        parts: Form = "NFD" if form == "NFC" else "NFKD"
        text = _long_run(parts).sub(lambda run: _sorted_marks(parts, run[0]), text)
    return unicodedata.normalize(form, text)


Form = Literal["NFD", "NFKD"]


@cache
def _long_run(form: Form) -> re.Pattern[str]:
    """Returns the pattern of more than 30 characters that all decompose into combining marks."""
    marks = [code for code in range(128, LAST_MARK) if _is_mark(form, chr(code))]
    runs = groupby(enumerate(marks), lambda place: place[1] - place[0])
    ranges = [[chr(code) for _, code in run] for _, run in runs]
    return re.compile("[" + "".join(f"{one[0]}-{one[-1]}" for one in ranges) + "]{31,}")


def _is_mark(form: Form, char: str) -> bool:
    return all(map(unicodedata.combining, unicodedata.normalize(form, char)))


def _sorted_marks(form: Form, marks: str) -> str:
    """Returns the marks in canonical order: decomposed and sorted by combining class, equal ones in their order."""
    marks = "".join(unicodedata.normalize(form, char) for char in marks)
    return "".join(sorted(marks, key=unicodedata.combining))


def as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns the column as one contiguous array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def to_mask(found: pa.Array) -> Mask:
    """Returns a boolean array as a numpy mask; null becomes False."""
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))
