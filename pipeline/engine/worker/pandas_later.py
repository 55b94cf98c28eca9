"""Delays the import of pandas until something needs it, instead of importing it with PyArrow's first array.

`pa.array` checks whether its argument is a pandas object, and imports pandas for that: 0.33 s of CPU and 40 MB in each
process of a run that does not use pandas. Here PyArrow makes its check while pandas is hidden. It checks again once
pandas is imported, by a stage or by `to_pandas`; before that, no pandas object can exist.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


def leave_pandas_alone() -> None:
    """Hides pandas from PyArrow until it is imported. Call this early in a process; no effect if it is imported already."""
    if "pandas" in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    pa.array([])  # PyArrow looks for pandas and does not find it
    finder.hides = False


class _Finder(MetaPathFinder):
    """Hides pandas while `hides` is set. Afterwards finds it as usual, and notifies PyArrow when it is imported."""

    hides = True
    looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "pandas" or self.looking:
            return None
        if self.hides:
            raise ModuleNotFoundError(name, name=name)
        self.looking = True  # so that the call below uses only the other finders
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _load(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    load(module)
    with suppress(ImportError):  # pandas is too old for PyArrow, which then ignores it
        pa.lib._pandas_api.pd  # noqa: B018  # reading the attribute makes PyArrow look again
