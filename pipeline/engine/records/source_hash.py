"""Hash of the code that makes a step's rows: the stage's module and everything it imports, as written in the files.

The import closure is static: imports, also those inside functions, are read from syntax trees; nothing is executed. It
covers `vlpipe.stages`, `vlpipe.models`, the stage's own package and every other module that is not installed. The
engine is excluded; it has a format number instead. Comments, docstrings, positions and module names do not change the
hash, so a file may be moved. Data files next to a module whose code names them are included.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlpipe.pipeline.engine.records.class_versions import Mark, class_versions
from vlpipe.pipeline.engine.records.parsed_source import Parsed, load_parsed, parse
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.steps.canonical import canonical
from vlpipe.pipeline.storage.store import sha256_file

ENGINE = "vlpipe"
ROOMS = ("vlpipe.stages", "vlpipe.models")
CLASS_PATH = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")  # a class named in a parameter: `blip:Blip`


@dataclass(frozen=True, slots=True)
class Source:
    """The hash of an import closure, and the files it was computed from."""

    hash: str
    marks: tuple[Mark, ...]

    def is_current(self) -> bool:
        """Returns False if a file of the closure was edited or removed since."""
        return all(_mark(path) == (path, size, time) for path, size, time in self.marks)


class Sources:
    """Hashes of stages' code as the files are now: each file is looked at once, for one plan or one check of a root."""

    def __init__(self) -> None:
        self._finders: dict[str, _Finder] = {}
        self._hashes: dict[tuple[str, tuple[str, ...]], str] = {}

    def hash(self, stage: Stage) -> str:
        """Returns the hash of the stage's code."""
        entry = _entry(stage)
        if entry not in self._hashes:
            own = entry[0].partition(".")[0]
            self._hashes[entry] = _source(*entry, self._finder(own)).hash
        return self._hashes[entry]

    def versions(self, stage: Stage) -> tuple[str, ...]:
        """Returns `USE VERSION` of each class that the parameters name and whose VERSION is above 1."""
        finder = self._finder(type(stage.runs()).__module__.partition(".")[0])
        named = {text for text in _texts(canonical(stage)) if CLASS_PATH.fullmatch(text)}
        return class_versions(named, finder.files)

    def _finder(self, own: str) -> _Finder:
        return self._finders.setdefault(own, _Finder(own))


_running: dict[tuple[str, tuple[str, ...]], Source] = {}


def running_source(stage: Stage) -> Source:
    """Returns the code this process runs: computed when the stage is first used here, so without later edits."""
    entry = _entry(stage)
    if entry not in _running:
        _running[entry] = _source(*entry)
    return _running[entry]


def recorded_hash(stage: Stage) -> str:
    """Returns the code hash for a receipt: of the running code, or a text that equals no hash if a file was edited since."""
    source = running_source(stage)
    return source.hash if source.is_current() else f"edited while it ran: {source.hash}"


def _entry(stage: Stage) -> tuple[str, tuple[str, ...]]:
    """Returns the stage's own module, and modules that its parameters name (`use: "blip:Blip"` names `blip`)."""
    made_by = stage.runs()
    texts = _texts(canonical(made_by))
    named = sorted({m[1] for text in texts if (m := CLASS_PATH.fullmatch(text))})
    return type(made_by).__module__, tuple(named)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _source(module: str, named: tuple[str, ...], finder: _Finder | None = None) -> Source:
    load_parsed()
    finder = finder or _Finder(own=module.partition(".")[0])
    todo = [module, *(full for name in named for full in finder.meant_by(name))]
    seen, found = set[str](), dict[str, Parsed]()
    marks: set[Mark] = set()
    data_digests: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if (path := finder.path(name)) is None:
            continue
        found[name], own_marks, own_digests = finder.read(name, path)
        marks.update(own_marks)
        data_digests.update(own_digests)
        todo += found[name].imports
        todo += [name.rpartition(".")[0]] if "." in name else []  # importing a.b runs a/__init__.py as well
    if not found:  # defined in a notebook or a shell: there is no file
        return Source("", ())
    texts = {name: _text(parsed, found) for name, parsed in found.items() if parsed.digest}
    text = "\n".join([texts.get(module, ""), *sorted(set(texts.values())), *sorted(data_digests)])
    return Source(hashlib.sha256(text.encode()).hexdigest()[:16], tuple(sorted(marks)))


def _text(parsed: Parsed, found: Mapping[str, Parsed]) -> str:
    """Returns a module's digest, and per `from` import the digest of the imported module, or its name if it is installed.

    The engine is excluded.
    """
    words = set()
    for base, name, here in parsed.froms:
        target = found.get(f"{base}.{name}") or found.get(base)
        if target or base.split(".")[0] != ENGINE:
            words.add(f"{target.digest if target else base} {name} {here}")
    return " ".join([parsed.digest, *sorted(words)])


def _mark(path: str) -> Mark:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return path, -1, -1
    return path, stat.st_size, stat.st_mtime_ns


def _data_files(path: str, strings: frozenset[str]) -> Iterator[Path]:
    """Yields data files that a string in the module names: files next to it, or all files of a folder next to it."""
    here = Path(path).parent
    for name in sorted(strings & set(os.listdir(here))):
        beside = here / name
        if beside.suffix != ".py" and beside.is_file():
            yield beside
        elif beside.is_dir() and not (beside / "__init__.py").exists():
            yield from (
                p for p in sorted(beside.rglob("*")) if p.is_file() and p.suffix not in (".py", ".pyc")
            )


class _Finder:
    """Maps module names to files without importing, and reads each file once. own: the stage's top-level package, included
    even if installed."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._read: dict[str, tuple[Parsed, tuple[Mark, ...], tuple[str, ...]]] = {}
        self._folders: dict[str, tuple[str, list[str]]] = {}
        self._paths: dict[str, str | None] = {}

    def path(self, module: str) -> str | None:
        """Returns the file of a module; None for the engine, installed packages and modules without a file."""
        if module not in self._paths:
            self._paths[module] = self._look_for(module)
        return self._paths[module]

    def read(self, module: str, path: str) -> tuple[Parsed, tuple[Mark, ...], tuple[str, ...]]:
        """Returns a module's parsed file; the marks of it and of its data files; the names and digests of those."""
        if module not in self._read:
            mark = _mark(path)
            parsed = parse(module, path.endswith("__init__.py"), mark)
            data = [*_data_files(path, parsed.strings)]
            digests = tuple(f"{file.name} {sha256_file(file)}" for file in data)
            self._read[module] = parsed, (mark, *(_mark(str(file)) for file in data)), digests
        return self._read[module]

    def _look_for(self, module: str) -> str | None:
        top, _, rest = module.partition(".")
        if top == "vlpipe" and not any(module == room or module.startswith(room + ".") for room in ROOMS):
            return None
        file, folders = self._top(top)
        if not rest:
            return file or None
        for part in rest.split("."):
            file, folders = _below(folders, part)
        return file or None

    def meant_by(self, name: str) -> list[str]:
        """Returns modules that a class path in a parameter may refer to; the name as written if no room of ours has it."""
        groups = [f"{room}.{sub}" for room in ROOMS for sub in self._groups(room)]
        inner = [f"{group}.{sub}" for group in groups for sub in self._groups(group)]
        return [full for base in (*ROOMS, *groups, *inner) if self.path(full := f"{base}.{name}")] or [name]

    def files(self, name: str) -> list[Mark]:
        """Returns the files of the modules that a class path may refer to."""
        return [_mark(path) for full in self.meant_by(name) if (path := self.path(full))]

    def _groups(self, room: str) -> list[str]:
        top, *parts = room.split(".")
        folders = functools.reduce(lambda inside, part: _below(inside, part)[1], parts, self._top(top)[1])
        return sorted({entry.name for folder in folders for entry in os.scandir(folder) if entry.is_dir()})

    def _top(self, name: str) -> tuple[str, list[str]]:
        """Returns (file, folders to search for submodules) of a top-level module; both empty if it is not included."""
        if name not in self._folders:
            self._folders[name] = self._look_up(name)
        return self._folders[name]

    def _look_up(self, name: str) -> tuple[str, list[str]]:
        if name in sys.builtin_module_names or (name in sys.stdlib_module_names and name != self.own):
            return "", []
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # `__main__` of a script has no spec
            spec = None
        if spec is None:
            file = getattr(sys.modules.get(name), "__file__", None) or ""
            return file, []
        folders = list(spec.submodule_search_locations or ())
        file = spec.origin if spec.origin and os.path.isfile(spec.origin) else ""
        if name not in (self.own, "vlpipe") and _is_installed(file or (folders or [""])[0]):
            return "", []
        return file, folders


def _below(folders: list[str], part: str) -> tuple[str, list[str]]:
    for folder in folders:
        inner = os.path.join(folder, part)
        if os.path.isfile(file := os.path.join(inner, "__init__.py")):
            return file, [inner]
        if os.path.isfile(f"{inner}.py"):
            return f"{inner}.py", []
    return "", [inner for folder in folders if os.path.isdir(inner := os.path.join(folder, part))]


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.realpath(p) + os.sep for p in paths if p})


def _is_installed(path: str) -> bool:
    real = os.path.realpath(path)
    parts = real.split(os.sep)
    return real.startswith(_installed_folders()) or "site-packages" in parts or "dist-packages" in parts
