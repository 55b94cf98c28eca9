"""The word list of a bag-of-words text side (MIL-NCE's `s3d_dict.npy`): read without running anything in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vlpipe.models.weights import pickled_arrays
from vlpipe.models.weights.pickled_arrays import ERRORS

WORD = re.compile(r"[\w']+")


class Words:
    """Word k of the list has id k + 1; 0 is padding. Of a repeated word the last place counts, as published."""

    def __init__(self, words: Sequence[str]) -> None:
        self.num_words = len(words)
        self._ids = {word: k + 1 for k, word in enumerate(words)}

    @classmethod
    def load(cls, path: str | Path) -> Words:
        """From an .npy file of strings. ValueError when it is not one, or would run code."""
        return cls(read_words(path))

    def ids(self, texts: Iterable[str], max_words: int = 20, *, lower: bool = True) -> npt.NDArray[np.int64]:
        """(B, max_words): words not in the list are left out, the rest cut or padded with 0.

        max_words: 20 in training, 30 in evaluation, 16 in the published inference code, which also lower-cases.
        """
        rows = []
        for text in texts:
            found = [i for w in WORD.findall(text.lower() if lower else text) if (i := self._ids.get(w))]
            rows.append((found + [0] * max_words)[:max_words])
        return np.array(rows, np.int64).reshape(len(rows), max_words)


def read_words(path: str | Path) -> list[str]:
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, in_columns, dtype = read(file)
            found = _pickled(file) if dtype.hasobject else _plain(file.read(), shape, dtype, in_columns)
            return [w.decode() if isinstance(w, bytes) else _word(w) for w in found.ravel().tolist()]
        except ERRORS as error:
            raise ValueError(f"{path} is not an .npy file with a list of words: {error}") from error


def _pickled(file: IO[bytes]) -> npt.NDArray[Any]:
    found = pickled_arrays.load(file)
    if not isinstance(found, pickled_arrays.PickledArray):
        raise ValueError(f"the file must contain an array, but contains a {type(found).__name__}")
    return found.value


def _plain(data: bytes, shape: tuple[int, ...], dtype: Any, in_columns: bool) -> npt.NDArray[Any]:
    if dtype.kind not in "SU" or prod(shape) * dtype.itemsize != len(data) or not data:
        raise ValueError(
            f"the array must contain strings, but has dtype {dtype} and shape {shape} in {len(data)} bytes"
        )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if in_columns else "C")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the array must contain strings, but contains a {type(value).__name__}")
    return str(value)
