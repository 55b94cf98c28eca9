"""Arrays out of a detectron2 `.pkl` without running what it says: only NumPy arrays and plain containers are built."""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def _latin1(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 hold bytes as; any other codec could run code of its own."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants the codec {encoding!r}")
    return codecs.encode(text, "latin1")


# A NumPy array's pickle names these three; NumPy 2 moved `core` to `_core`. OrderedDict: what torch-made files use.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _core in ("core", "_core"):
    _ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _RECONSTRUCT
    _ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _SCALAR


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}") from None


def load_arrays(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """name -> array of `{"model": {name: array}}`, or of the inner dict alone. ValueError for anything else."""
    with open(path, "rb") as file:
        try:
            found = _Arrays(file, encoding="latin1").load()
        except (
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
        ) as error:
            raise ValueError(
                f"{path}: wanted a pickle of NumPy arrays, which cannot run code; {error}"
            ) from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise ValueError(f'{path}: wanted {{"model": {{name: array}}}}, got {type(found).__name__}')
    bad = next((name for name, array in found.items() if array.dtype.kind not in "fiu"), None)
    if bad is not None:
        raise ValueError(f"{path}: wanted arrays of numbers, {bad!r} has dtype {found[bad].dtype}")
    return {str(name): np.ascontiguousarray(array) for name, array in found.items()}
