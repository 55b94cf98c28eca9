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
    """Returns the class `module:Name`, looked up in the package `below` and its rooms first, then as a full import path.

    Raises ValueError if no module has this name, or modules of several rooms have it.
    """
    module_name, colon, name = use.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"use must be 'module:Class', got {use!r}")
    full_name = full_module_name(module_name, below) or module_name
    if not _exists(full_name):
        raise ValueError(
            f"use: there is no module {module_name!r}, neither on the Python path nor below {below}, which has "
            f"{', '.join(_modules(below))}"
        )
    module = importlib.import_module(full_name)
    if not hasattr(module, name):
        raise ValueError(
            f"use: module {full_name} has no class {name!r}; it has {', '.join(_classes(module))}"
        )
    return getattr(module, name)


def full_module_name(module_name: str, below: str) -> str | None:
    """Returns the import path of a module of the package `below`, or of one of its rooms; None if there is none.

    A room is a subpackage: `clip` below vlpipe.models.systems is `vlpipe.models.systems.image_text.clip`. Raises ValueError
    if several rooms have a module of this name.
    """
    if _exists(full_name := f"{below}.{module_name}"):
        return full_name
    found = [full for room in _rooms(below) if _exists(full := f"{room}.{module_name}")]
    if len(found) > 1:
        raise ValueError(f"use: {module_name!r} may be {' or '.join(found)}; write the path below {below}")
    return found[0] if found else None


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


def _rooms(package_name: str) -> list[str]:
    package = importlib.import_module(package_name)
    return [f"{package_name}.{info.name}" for info in pkgutil.iter_modules(package.__path__) if info.ispkg]


def _modules(package_name: str) -> list[str]:
    """Returns the names of the modules of a package and of its rooms."""
    folders = [package_name, *_rooms(package_name)]
    return sorted(
        {i.name for f in folders for i in pkgutil.iter_modules(importlib.import_module(f).__path__)}
    )


def _classes(module: Any) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
