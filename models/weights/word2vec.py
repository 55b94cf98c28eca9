"""Word vectors in the binary format of the original word2vec tool, such as those of Google News.

Mikolov et al. 2013, https://arxiv.org/abs/1301.3781. A file is a line "NUMBER WIDTH", then for each word the word, a
space and WIDTH float32 in little-endian order, with or without a line feed after them.
"""

from __future__ import annotations

import gzip
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 1 << 20
MAX_WORD_BYTES = 4096
MAX_WIDTH = 65_536

Vectors = npt.NDArray[np.float32]


def read(path: str | Path, wanted: Collection[str] | None = None) -> tuple[list[str], Vectors]:
    """Returns words in the order of the file, and their vectors (N, D): those of `wanted`, or all if it is None.

    A file whose name ends in .gz is decompressed. Of a word that is there twice, the first vector counts. Memory: the
    vectors returned and a buffer of 1 MB. Raises ValueError, naming the file, if it is not such a file, ends early or
    goes on after the last word, or a vector that is returned is not finite.
    """
    keep = None if wanted is None else {word.encode() for word in wanted}
    opener: Any = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rb") as file:
        try:
            return _read(_Buffer(file), keep)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not a word2vec file in the binary format: {error}") from error


def _read(data: _Buffer, keep: set[bytes] | None) -> tuple[list[str], Vectors]:
    header = data.until(b"\n").split()
    if len(header) != 2 or not all(part.isdigit() and len(part) < 12 for part in header):
        raise ValueError(f"the first line is {header[:3]}, wanted the number of words and the width")
    num, width = int(header[0]), int(header[1])
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"the width is {width}, wanted 1 to {MAX_WIDTH:,}")
    found: dict[bytes, bytes] = {}
    for number in range(1, num + 1):
        word, vector = data.until(b" ").lstrip(b"\n"), data.take(4 * width)
        if (keep is None or word in keep) and word not in found:
            if not np.isfinite(np.frombuffer(vector, "<f4")).all():
                raise ValueError(f"the vector of word {number} ({word[:40]!r}) is not finite")
            found[word] = vector
    if data.rest().strip(b"\n"):
        raise ValueError(f"it goes on after the {num:,} words that its first line states")
    words = [word.decode(errors="replace") for word in found]
    return words, np.frombuffer(b"".join(found.values()), "<f4").reshape(len(words), width)


class _Buffer:
    """Reads a file through a buffer of about CHUNK_BYTES."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._bytes, self._at = file, b"", 0

    def until(self, end: bytes) -> bytes:
        """Returns the bytes before the next `end`, which is skipped."""
        while (stop := self._bytes.find(end, self._at)) < 0:
            if len(self._bytes) - self._at > MAX_WORD_BYTES:
                raise ValueError(f"a word has more than {MAX_WORD_BYTES:,} bytes")
            self._more()
        if stop - self._at > MAX_WORD_BYTES:
            raise ValueError(f"a word has more than {MAX_WORD_BYTES:,} bytes")
        found, self._at = self._bytes[self._at : stop], stop + 1
        return found

    def take(self, num: int) -> bytes:
        while len(self._bytes) - self._at < num:
            self._more()
        found, self._at = self._bytes[self._at : self._at + num], self._at + num
        return found

    def rest(self) -> bytes:
        """Returns up to a few bytes of what follows."""
        return self._bytes[self._at : self._at + 64] + self._file.read(64)

    def _more(self) -> None:
        chunk = self._file.read(CHUNK_BYTES)
        if not chunk:
            raise EOFError("it ends in the middle of a word")
        self._bytes, self._at = self._bytes[self._at :] + chunk, 0
