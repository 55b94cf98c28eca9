"""NumPy arrays out of a pickle of unknown origin: no code in it is run, and no pointer in it is followed.

NumPy's own functions cannot be used for this: the pickled state of a dtype can claim that bytes are Python objects, and
NumPy then follows them as pointers. Here a pickle names plain functions that only store what they are given, and arrays
are made from their bytes with `np.frombuffer`. The reader is the one of pickle that is written in Python, whose memo is a
dict: in the one written in C, an index in the file can make it allocate gigabytes.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from math import prod
from typing import IO, Any, ClassVar

import numpy as np
import numpy.typing as npt

# What a broken or hostile pickle makes the reader raise.
ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, RecursionError, NotImplementedError, struct.error),
)
OBJECT = "O"
MAX_BYTEARRAY = 1 << 40
DTYPE = re.compile(r"([<>=|]?)([fiu](?:1|2|4|8|16)|b1|[SU][0-9]{1,6}|O8?)")


def load(file: IO[bytes]) -> Any:
    """Returns the pickled value, in which arrays are `PickledArray` and OrderedDicts are dicts.

    Raises ValueError if it is broken, or has anything but arrays of numbers and strings, scalars and plain containers.
    """
    try:
        return _Reader(file, encoding="latin1").load()
    except ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error


class _Dtype:
    """The dtype of a pickled array. name: as `np.dtype` takes it, or OBJECT."""

    __slots__ = ("name",)

    def __init__(self, name: str | bytes) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        found = DTYPE.fullmatch(text)
        if not found:
            raise pickle.UnpicklingError(f"the dtype {text[:40]!r} is not one of numbers or strings")
        self.name = OBJECT if found[2].startswith(OBJECT) else text

    def __setstate__(self, state: Any) -> None:
        _, order, *others = state
        if isinstance(order, bytes):
            order = order.decode("latin1")
        if order not in ("<", ">", "=", "|") or others[:3] != [None, None, None]:
            raise pickle.UnpicklingError("the dtype has fields; only dtypes of numbers or strings are read")
        if self.name != OBJECT:
            self.name = order + self.name.lstrip("<>=|")

    def values(self, data: Any, count: int) -> npt.NDArray[Any]:
        """Returns (count,): the numbers or strings in `data`, in this machine's byte order."""
        if self.name == OBJECT:
            if not (isinstance(data, list) and len(data) == count):
                raise pickle.UnpicklingError(
                    f"an array of {count} objects does not contain a list of that length"
                )
            values = np.empty(count, object)
            values[:] = [one.value if isinstance(one, _Scalar) else one for one in data]
            return values
        dtype, data = np.dtype(self.name), data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"an array of {count} values of {dtype} does not contain as many bytes"
            )
        native = dtype.newbyteorder("=")
        return (
            np.frombuffer(data, dtype).astype(native) if count and dtype.itemsize else np.empty(count, native)
        )


class PickledArray:
    """An array of a pickle. value: the array; its dtype is of numbers, of strings, or object."""

    __slots__ = ("value",)

    value: npt.NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        shape, dtype, in_columns, data = state[-4:]  # before them: a version
        if not (isinstance(dtype, _Dtype) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array has no shape or no dtype")
        if len(shape) > 64 or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array has the invalid shape {str(shape)[:80]}")
        self.value = dtype.values(data, prod(shape)).reshape(shape, order="F" if in_columns else "C")


class _Scalar:
    __slots__ = ("value",)

    def __init__(self, dtype: Any, data: Any) -> None:
        if not isinstance(dtype, _Dtype) or dtype.name == OBJECT:
            raise pickle.UnpicklingError("a scalar is not a number or string")
        self.value = dtype.values(data, 1)[0].item()


def _functions() -> dict[tuple[str, str], Callable[..., Any] | str]:
    """Returns (module, name) -> what stands for it. Made anew for each pickle, which may set attributes of functions."""

    def dtype(name: Any, *_: Any) -> _Dtype:
        return _Dtype(name)

    def reconstruct(*_: Any) -> PickledArray:
        return PickledArray()

    def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
        array = PickledArray()
        array.__setstate__((shape, dtype, order == "F", data))
        return array

    def scalar(*args: Any) -> _Scalar:
        return _Scalar(*args)

    def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
        return dict(pairs)

    def no_bytes() -> bytes:
        return b""

    def encode(text: str, encoding: str) -> bytes:
        """Returns the bytes that a pickle of protocol 2 has as text. Other codecs could run code of their own."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(
                f"the pickle requests the codec {encoding!r}; only latin1 is allowed"
            )
        return text.encode("latin1")

    found: dict[tuple[str, str], Callable[..., Any] | str] = {
        ("numpy", "ndarray"): "ndarray",  # an argument of `_reconstruct`
        ("numpy", "dtype"): dtype,
        ("collections", "OrderedDict"): ordered_dict,
        ("_codecs", "encode"): encode,
        ("__builtin__", "bytes"): no_bytes,  # of protocols 0 to 2
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 2 moved them
        found[f"{core}.multiarray", "_reconstruct"] = reconstruct
        found[f"{core}.multiarray", "scalar"] = scalar
        found[f"{core}.numeric", "_frombuffer"] = from_buffer  # of protocol 5
    return found


class _Reader(pickle._Unpickler):
    def __init__(self, file: IO[bytes], *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._functions = _functions()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._functions[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle requests {module}.{name}, which is not allowed"
            ) from None

    def load_bytearray8(self) -> None:
        """Reads a bytearray; pickle's own method first makes one of the length that is named, however large."""
        reader: Any = self
        (length,) = struct.unpack("<Q", reader.read(8))
        data = reader.read(length) if length <= MAX_BYTEARRAY else b""
        if len(data) != length:
            raise pickle.UnpicklingError(f"the pickle ends before the {length} bytes of a bytearray")
        reader.append(bytearray(data))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
