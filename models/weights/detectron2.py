"""Arrays out of a detectron2 `.pkl` without running what it says: only NumPy arrays and plain containers are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.models.weights import pickled_arrays
from vlpipe.models.weights.pickled_arrays import PickledArray


def load_arrays(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """name -> array of `{"model": {name: array}}`, or of the inner dict alone. ValueError for anything else."""
    with open(path, "rb") as file:
        try:
            found = pickled_arrays.load(file)
        except ValueError as error:
            raise ValueError(
                f"{path} must be a pickle of NumPy arrays only, as other objects can run code: {error}"
            ) from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not all(_is_array(one) for one in found.values()):
        raise ValueError(
            f'{path} must contain {{"model": {{name: array}}}} or {{name: array}}, but contains a {type(found).__name__}'
        )
    arrays: dict[str, npt.NDArray[Any]] = {str(name): one.value for name, one in found.items()}
    bad = next((name for name, array in arrays.items() if array.dtype.kind not in "fiu"), None)
    if bad is not None:
        raise ValueError(f"{path} must contain arrays of numbers, but {bad!r} has dtype {arrays[bad].dtype}")
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, PickledArray) and hasattr(value, "value")
