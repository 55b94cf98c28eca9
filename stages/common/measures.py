"""Measures that a rule may test in addition to a row's columns: image sizes, and properties of each text.

Published rules define "word" differently, so each docstring states what is counted. Sizes are those of the original
image: `original_width` and `original_height` if present (the stored image was resized), else `width` and `height`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.stages.common.texts import as_array

ASCII_ALNUM = np.array([chr(unit).isalnum() and unit < 128 for unit in range(256)])
NOT_ALNUM = r"[^\pL\pN]+"  # letters and numbers by Unicode category
URL_ONLY = r"^\s*(?:[a-z][a-z0-9+.-]*://|www\.)\S+\s*$"
IMAGE_ENDING = r"\.(?:jpe?g|png|gif|webp|avif|tiff?|bmp|svg|heic)"
CAMERA_NAME = r"(?:img|dsc[nf]?|dcim|pict|p|mvi|vid|screen ?shot|image|photo)[ _-]*\d{2,}"
FILE_NAME = rf"(?i)^\s*(?:\S*{IMAGE_ENDING}|{CAMERA_NAME}(?:{IMAGE_ENDING})?)\s*$"


def num_chars(text: pa.Array) -> pa.Array:
    """Number of Unicode code points."""
    return pc.utf8_length(text)


def split_words(text: pa.Array) -> pa.Array:
    """Returns list<string>: the words of a text, split at whitespace as by `str.split`; an empty text has one empty word."""
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(text))


def num_words(text: pa.Array) -> pa.Array:
    """Number of words separated by whitespace."""
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    return pc.if_else(empty, 0, pc.list_value_length(split_words(text)))


def alnum_ratio(text: pa.Array) -> pa.Array:
    """Share of code points that are letters or numbers; null for an empty text."""
    return _ratio(_num_alnum(text), pc.utf8_length(text))


def _num_alnum(text: pa.Array) -> pa.Array:
    """Number of letters and numbers. ASCII texts use a lookup table, in 0.5 to 0.6 of the regex's time."""
    text = as_array(text).cast(pa.string())
    _, offsets, data = text.buffers()
    ends = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    units = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]

    def per_text(hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        before = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)])[ends - ends[0]]
        found: npt.NDArray[np.int64] = np.diff(before)
        return found

    counts = per_text(ASCII_ALNUM[units])
    other = np.flatnonzero(per_text(units > 127))
    if len(other):
        counts[other] = pc.utf8_length(pc.replace_substring_regex(text.take(pa.array(other)), NOT_ALNUM, ""))
    return pa.array(counts, mask=np.asarray(text.is_null().to_numpy(zero_copy_only=False)))


def unique_word_ratio(text: pa.Array) -> pa.Array:
    """Number of distinct words / number of words, split at whitespace, case ignored; null for a text without words."""
    words = [t.lower().split() if t is not None else () for t in text.to_pylist()]
    return pa.array([len(set(w)) / len(w) if w else None for w in words], pa.float64())


def word_repetition(text: pa.Array) -> pa.Array:
    """1 - unique_word_ratio: the share of words that repeat an earlier one; null for a text without words."""
    return pc.subtract(1.0, unique_word_ratio(text))


def is_url(text: pa.Array) -> pa.Array:
    """Returns whether the text is only a URL: one word that begins with `www.` or with a scheme and `://`."""
    return pc.match_substring_regex(text, URL_ONLY, ignore_case=True)


def is_file_name(text: pa.Array) -> pa.Array:
    """Returns whether the text is only an image file name, or a default name of cameras and programs (`IMG_1234`)."""
    return pc.match_substring_regex(text, FILE_NAME)


TextMeasure = Callable[[pa.Array], pa.Array]
TEXT_MEASURES: dict[str, tuple[TextMeasure, pa.DataType]] = {
    "num_chars": (num_chars, pa.int32()),
    "num_words": (num_words, pa.int32()),
    "alnum_ratio": (alnum_ratio, pa.float64()),
    "unique_word_ratio": (unique_word_ratio, pa.float64()),
    "word_repetition": (word_repetition, pa.float64()),
    "is_url": (is_url, pa.bool_()),
    "is_file_name": (is_file_name, pa.bool_()),
}


def min_side(rows: pa.Table) -> pa.ChunkedArray:
    """Length of the shorter side in pixels."""
    return pc.min_element_wise(*sides(rows), skip_nulls=False)


def max_side(rows: pa.Table) -> pa.ChunkedArray:
    """Length of the longer side in pixels."""
    return pc.max_element_wise(*sides(rows), skip_nulls=False)


def aspect_ratio(rows: pa.Table) -> pa.ChunkedArray:
    """Longer side / shorter side, at least 1."""
    return _ratio(max_side(rows), min_side(rows))


def num_pixels(rows: pa.Table) -> pa.ChunkedArray:
    """Width x height in pixels."""
    return pc.multiply(*(pc.cast(side, pa.int64()) for side in sides(rows)))


def num_bytes(rows: pa.Table) -> pa.ChunkedArray:
    """Size of the encoded image in bytes."""
    return pc.binary_length(rows["image"])


def sides(rows: pa.Table) -> list[pa.ChunkedArray]:
    """Returns [width, height] in pixels: the original size if it is known, else the stored size."""
    found = []
    for name in ("width", "height"):
        stored = rows[name]
        original = f"original_{name}"
        found.append(pc.coalesce(rows[original], stored) if original in rows.column_names else stored)
    return found


SIZE = {"width": pa.int32(), "height": pa.int32()}
RowMeasure = Callable[[pa.Table], pa.ChunkedArray]
# name -> (measure, value type, columns it reads)
ROW_MEASURES: dict[str, tuple[RowMeasure, pa.DataType, dict[str, pa.DataType]]] = {
    "min_side": (min_side, pa.int32(), SIZE),
    "max_side": (max_side, pa.int32(), SIZE),
    "aspect_ratio": (aspect_ratio, pa.float64(), SIZE),
    "num_pixels": (num_pixels, pa.int64(), SIZE),
    "num_bytes": (num_bytes, pa.int32(), {"image": pa.binary()}),
}


def names() -> Sequence[str]:
    """Returns the names of all measures."""
    return [*ROW_MEASURES, *TEXT_MEASURES]


def _ratio(above: pa.Array, below: pa.Array) -> pa.Array:
    """`above` / `below`; null where `below` is 0."""
    zero = pc.equal(below, 0)
    safe = pc.if_else(zero, 1, below)
    return pc.if_else(zero, None, pc.divide(pc.cast(above, pa.float64()), pc.cast(safe, pa.float64())))
