"""word2vec's binary format: what is read, what is refused, and how much memory it takes."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vlpipe.models.weights import word2vec

WORDS = {"the": [1.0, -2.0, 0.5], "Ünlü": [0.0, 3.0, 1.0], "salt_pepper": [7.0, 8.0, 9.0]}


def written(words: dict[str, list[float]], end: bytes = b"\n", header: str | None = None) -> bytes:
    found = (header or f"{len(words)} 3").encode() + b"\n"
    for word, values in words.items():
        found += word.encode() + b" " + struct.pack("<3f", *values) + end
    return found


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_words_and_vectors_are_read(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(written(WORDS, end))
    words, vectors = word2vec.read(tmp_path / "a.bin")
    assert words == list(WORDS)
    assert vectors.tolist() == list(WORDS.values())
    words, vectors = word2vec.read(tmp_path / "a.bin", {"Ünlü", "not there"})
    assert (words, vectors.tolist()) == (["Ünlü"], [WORDS["Ünlü"]])


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin.gz").write_bytes(gzip.compress(written(WORDS)))
    assert word2vec.read(tmp_path / "a.bin.gz", ["the"])[1].tolist() == [WORDS["the"]]


def test_a_vector_that_looks_like_text_is_a_vector(tmp_path: Path) -> None:
    odd = struct.unpack("<3f", b" \n a  \nb \n  ")
    (tmp_path / "a.bin").write_bytes(written({"x": list(odd), "y": [1.0, 2.0, 3.0]}))
    words, vectors = word2vec.read(tmp_path / "a.bin")
    assert words == ["x", "y"]
    assert np.array_equal(vectors[0], np.array(odd, np.float32))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (written(WORDS)[:-3], "ends in the middle"),
        (written(WORDS, header="4 3"), "ends in the middle"),
        (written(WORDS, header="2 3"), "goes on after the 2 words"),
        (written(WORDS, header="three 3"), "the first line is"),
        (written(WORDS, header="3 0"), "the width is 0"),
        (written({**WORDS, "bad": [float("nan"), 0, 0]}), r"vector of word 4 \(b'bad'\) is not finite"),
        (b"1 3\n" + b"x" * 5000, "a word has more than"),
        (b"", "ends in the middle"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.bin is not a word2vec file in the binary format: .*{why}"):
        word2vec.read(tmp_path / "a.bin")


def test_memory_is_that_of_the_words_wanted(tmp_path: Path) -> None:
    num, width = 20_000, 200  # 16 MB
    with (tmp_path / "a.bin").open("wb") as file:
        file.write(f"{num} {width}\n".encode())
        vector = np.ones(width, "<f4").tobytes()
        for k in range(num):
            file.write(f"word{k} ".encode() + vector)
    tracemalloc.start()
    words, _ = word2vec.read(tmp_path / "a.bin", {"word7", "word19999"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words == ["word7", "word19999"]
    assert peak < 6 << 20
