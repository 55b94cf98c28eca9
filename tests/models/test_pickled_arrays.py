"""Pickles of arrays: the real ones are read, and no other does anything but raise ValueError."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlpipe.models.video.words import read_words
from vlpipe.models.weights import pickled_arrays
from vlpipe.models.weights.detectron2 import load_arrays
from vlpipe.models.weights.pickled_arrays import PickledArray

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big end": np.arange(4, dtype=">i4"),
    "one": np.array(3, np.int64),
    "none": np.empty((0, 3), np.float16),
    "half of it": np.arange(10, dtype=np.uint8)[::2],
}


def read(data: bytes) -> Any:
    return pickled_arrays.load(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    more = {"at": np.float64(2.5), "n": [1, "a"], "author": OrderedDict(a=1)}
    path.write_bytes(pickle.dumps({"model": OrderedDict(ARRAYS), **more}, protocol=protocol))
    found = load_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        assert (found[name] == array).all()
        assert found[name].flags.writeable


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Bytes are text of Latin-1, and names are of NumPy 1."""
    state = b"(I1\n(I2\ntp1\ng0\nI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb."
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbp0\n0"
    found = read(dtype + array + state)
    assert isinstance(found, PickledArray)
    assert found.value.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "words",
    [
        np.array(["stir", "caf\u00e9"], dtype=object),
        np.array([b"stir", "caf\u00e9".encode()], dtype=object),
        np.array([np.str_("stir"), np.str_("caf\u00e9")], dtype=object),
        np.array(["stir", "caf\u00e9"]),
        np.array(["stir", "caf\u00e9"]).astype(">U9"),
        np.array([["stir", "caf\u00e9"]]).T,
    ],
)
def test_word_lists(tmp_path: Path, protocol: int, words: Any) -> None:
    path = tmp_path / "words.npy"
    np.save(path, words)
    if words.dtype.hasobject:
        head = path.read_bytes()[: 10 + struct.unpack("<H", path.read_bytes()[8:10])[0]]
        path.write_bytes(head + pickle.dumps(words, protocol=protocol))
    assert read_words(path) == ["stir", "caf\u00e9"]


def dtype_said(name: str, state: str) -> bytes:
    """A pickled dtype of this name and state."""
    return f"cnumpy\ndtype\n(S'{name}'\nI0\nI1\ntR{state}b".encode()


OBJECTS_WITHOUT_FLAGS = dtype_said("O8", "(I3\nS'|'\nNNNI8\nI8\nI0\nt")
FIELDS = dtype_said("V8", "(I3\nS'|'\nN(S'a'\ntI0\nI8\nI1\nI0\nt")
SUBDTYPE = dtype_said("f4", "(I3\nS'<'\n(I1\nI2\ntNNI8\nI8\nI0\nt")
SCALAR = b"cnumpy.core.multiarray\nscalar\n(%b" + b"S'AAAAAAAA'\ntR."
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt%bI00\n%btb."
HOSTILE = {
    "pointer as scalar": SCALAR % OBJECTS_WITHOUT_FLAGS,
    "pointer as array": ARRAY % (OBJECTS_WITHOUT_FLAGS, b"S'AAAAAAAA'\n"),
    "fields": ARRAY % (FIELDS, b"S'AAAAAAAA'\n"),
    "array in a dtype": ARRAY % (SUBDTYPE, b"S'AAAAAAAA'\n"),
    "too few bytes": ARRAY % (dtype_said("f8", "(I3\nS'<'\nNNNI8\nI8\nI0\nt"), b"S'AAAA'\n"),
    "not a dtype": ARRAY % (b"S'f8'\n", b"S'AAAAAAAA'\n"),
    "huge": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I4000000000\nI4000000000\nt"
    + dtype_said("f8", "(I3\nS'<'\nNNNI8\nI8\nI0\nt")
    + b"I00\nS'AAAA'\ntb.",
    "negative": (ARRAY % (dtype_said("f4", "(I3\nS'<'\nNNNI4\nI4\nI0\nt"), b"S'AAAA'\n")).replace(
        b"(I1\nt", b"(I-1\nt"
    ),
    "dtype of a dict": b"cnumpy\ndtype\n(}S'names'\n(lS'a'\nasS'formats'\n(lS'O'\nastR.",
    "system": b"cos\nsystem\n(S'touch hostile'\ntR.",
    "dots": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
    "codec": b"c_codecs\nencode\n(S'aa'\nS'hex'\ntR.",
    "memo of 16 GB": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "bytearray of 64 GB": b"\x80\x05\x96" + struct.pack("<Q", 64 << 30) + b"a.",
    "extension": b"\x80\x02\x82\x01.",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
    "attribute of a function": b"cnumpy\ndtype\n(N}S'__code__'\nI1\nstb(S'f4'\ntR.",
    "method of an array": ARRAY[:-1] % (dtype_said("f4", "(I3\nS'<'\nNNNI4\nI4\nI0\nt"), b"S'AAAA'\n")
    + b"(N}S'__setstate__'\ncnumpy\ndtype\nstb.",
    "ends early": pickle.dumps(ARRAYS)[:-20],
    "nothing": b"",
}


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(HOSTILE[what])
    with pytest.raises(ValueError, match=r"x\.pkl must"):
        load_arrays(tmp_path / "x.pkl")
    np.save(tmp_path / "x.npy", np.array(["a"], dtype=object))
    words = (tmp_path / "x.npy").read_bytes()
    head = words[: 10 + struct.unpack("<H", words[8:10])[0]]
    (tmp_path / "x.npy").write_bytes(head + HOSTILE[what])
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy file"):
        read_words(tmp_path / "x.npy")
    assert not (tmp_path / "hostile").exists()


def test_a_list_of_words_larger_than_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(["a"]))
    data = (tmp_path / "x.npy").read_bytes().replace(b"(1,), }          ", b"(9999999999,), } ")
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"has dtype <U1 and shape \(9999999999,\) in 4 bytes"):
        read_words(tmp_path / "x.npy")


@pytest.mark.timeout(60)
def test_damaged_pickles_are_read_or_refused(tmp_path: Path) -> None:
    """2,000 mutants: bytes changed, removed, doubled, or taken from a list of all opcodes."""
    draw = random.Random(0)
    codes = [op.code.encode("latin1") for op in pickletools.opcodes]
    whole = [pickle.dumps({"model": ARRAYS, "at": np.float64(1)}, protocol=p) for p in (0, 2, 4, 5)]
    whole += [pickle.dumps(np.array(["a", "bc"], dtype=object), protocol=p) for p in (2, 4)]
    counts = {"read": 0, "refused": 0}
    for _ in range(2000):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            new = draw.choice(
                [bytes([draw.randrange(256)]), draw.choice(codes), b"", bytes(data[at : at + 9]) * 2]
            )
            data[at : at + draw.randint(0, 2)] = new
        try:
            read(bytes(data))
        except ValueError:
            counts["refused"] += 1
        else:
            counts["read"] += 1
    assert sum(counts.values()) == 2000
    assert min(counts.values()) > 100, counts
