"""The word list of a bag-of-words text side (MIL-NCE's `s3d_dict.npy`): read without running anything in it."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"[\w']+")
# What a pickled array of strings names, by its old and its new path; nothing else may be called.
ALLOWED = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("ndarray", "dtype", "_reconstruct")
}


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
            _, _, dtype = read(file)
            if dtype.hasobject:
                found = _Strict(file).load()
            else:
                file.seek(0)
                found = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return [w.decode() if isinstance(w, bytes) else _word(w) for w in np.asarray(found).ravel()]
        except (ValueError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"word list: {path} is no .npy file of words: {error}") from error


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"wanted strings, got {type(value).__name__}")
    return str(value)


class _Strict(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a list of words does not need")
        return super().find_class(module, name)
