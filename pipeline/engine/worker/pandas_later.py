"""pandas is imported by whoever wants it, and not by PyArrow's first array.

`pa.array` asks whether what it is given is a pandas object, and imports pandas to know: 0.33 s of CPU and 40 MB in each
process of a run that has no use for it. Here PyArrow asks once while pandas cannot be found. It asks again when pandas is
imported, by a stage or by `to_pandas`; before that, nothing can be a pandas object.
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
    """Early in a process; does nothing where pandas is there already."""
    if "pandas" in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    pa.array([])  # does not find it
    finder.hides = False


class _Finder(MetaPathFinder):
    """Finds pandas where it is, once it no longer hides it, and lets PyArrow know when it has been imported."""

    hides = True
    looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "pandas" or self.looking:
            return None
        if self.hides:
            raise ModuleNotFoundError(name, name=name)
        self.looking = True  # the others may find it
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _load(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    load(module)
    with suppress(ImportError):  # too old for PyArrow, which then knows none
        pa.lib._pandas_api.pd  # noqa: B018  # asked for by name, it looks again
