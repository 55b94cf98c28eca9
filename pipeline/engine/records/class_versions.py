"""Versions of the classes that a stage's parameters name: models, losses, makers of streams, corruptors.

They have no stage of their own whose VERSION could be raised; `VERSION = 2` in the body of such a class has the same effect.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Mark = tuple[str, int, int]  # path, size, mtime_ns


def class_versions(named: Iterable[str], files_of: Callable[[str], Iterable[Mark]]) -> tuple[str, ...]:
    """Returns `USE VERSION` of each class with a VERSION above 1, sorted. Nothing is imported.

    named: class paths `module:Class`, as in a workflow; files_of: module -> files that it may mean.
    """
    found = set()
    for use in named:
        module, _, name = use.partition(":")
        versions = [_versions(mark).get(name, 1) for mark in files_of(module)]
        if max(versions, default=1) > 1:
            found.add(f"{use} {max(versions)}")
    return tuple(sorted(found))


@functools.lru_cache(maxsize=1000)
def _versions(mark: Mark) -> dict[str, int]:
    """Returns class -> VERSION of the classes of a file that set one."""
    try:
        tree = ast.parse(Path(mark[0]).read_bytes())
    except (SyntaxError, ValueError, FileNotFoundError):  # such a file cannot be imported either
        return {}
    return {
        one.name: value for one in ast.walk(tree) if isinstance(one, ast.ClassDef) for value in _set_in(one)
    }


def _set_in(cls: ast.ClassDef) -> Iterator[int]:
    for line in cls.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        value = getattr(line, "value", None)
        if "VERSION" in names and isinstance(value, ast.Constant) and type(value.value) is int:
            yield value.value
