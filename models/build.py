"""From a spec `{use: "blip:Blip", ...}` to the object: `use` is an import path, so there is nothing to
register.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from typing import Any


def find(use: str, below: str) -> Any:
    """The class `module:Name`, looked up below the package `below` first, then as a full import path."""
    module_name, colon, name = use.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"use must be 'module:Class', got {use!r}")
    for full_name in (f"{below}.{module_name}", module_name):
        if _exists(full_name):
            module = importlib.import_module(full_name)
            if hasattr(module, name):
                return getattr(module, name)
            raise ValueError(
                f"use: module {full_name} has no class {name!r}; it has {', '.join(_classes(module))}"
            )
    raise ValueError(
        f"use: there is no module {module_name!r}, neither on the Python path nor below {below}, which has "
        f"{', '.join(_modules(below))}"
    )


def build(spec: Mapping[str, Any], below: str, **kwargs: Any) -> Any:
    """Construct what `spec["use"]` names from the other keys of `spec` and from `kwargs`.

    A class with `from_spec(spec, **kwargs)` is built by that, any other by its constructor. ValueError
    names the spec.
    """
    if "use" not in spec:
        raise ValueError(
            f"the key 'use' ('module:Class', below {below}) is missing; the keys are {sorted(spec)}"
        )
    cls = find(spec["use"], below)
    params = {key: value for key, value in spec.items() if key != "use"}
    if hasattr(cls, "from_spec"):
        return cls.from_spec(params, **kwargs)
    try:
        return cls(**params, **kwargs)
    except TypeError as error:
        raise ValueError(f"{spec['use']}: {error}") from error


def _exists(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _modules(package_name: str) -> list[str]:
    package = importlib.import_module(package_name)
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def _classes(module: Any) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
