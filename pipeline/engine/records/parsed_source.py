"""Parsed source files for `source_hash`, with a cache in the user's cache folder."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from vlpipe.pipeline.engine.records.class_versions import Mark
from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.storage.private_folder import private_folder, write_private

FILE_NAME = re.compile(r"(?!\.{1,2}$)[\w.-]{1,80}")
MAX_PARSED = 5_000  # max files in the user's cache; about 500 bytes each


@dataclass(frozen=True, slots=True)
class Parsed:
    """One parsed file. digest: of its code without `from ... import` statements; "" if it has no code at all.

    froms: sorted (module, name, local name) of each `from` import; imports: every absolute module name it may import;
    strings: constants that may be file names.
    """

    digest: str
    froms: tuple[tuple[str, str, str], ...]
    imports: tuple[str, ...]
    strings: frozenset[str]


def parse(module: str, is_package: bool, mark: Mark) -> Parsed:
    """Returns the parsed file, from the user's cache if the file is unchanged. module: the name it is imported by."""
    key = f"{module} {mark[1]} {mark[2]} {mark[0]}"
    if key not in _cache.parsed:
        _cache.parsed[key] = _parse_anew(module, is_package, mark[0])
        _cache.is_new = True
    return _cache.parsed[key]


def _parse_anew(module: str, is_package: bool, path: str) -> Parsed:
    data = Path(path).read_bytes()
    tree = _tree(data) if path.endswith(".py") else None
    if tree is None:
        return Parsed(hashlib.sha256(data).hexdigest(), (), (), frozenset())
    package = module if is_package else module.rpartition(".")[0]
    froms: set[tuple[str, str, str]] = set()
    imports: set[str] = set()
    strings: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node.module or "", node.level)
            imports.update([base, *(f"{base}.{alias.name}" for alias in node.names)] if base else ())
            froms.update((base, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _calls_import(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                level = len(first.value) - len(first.value.lstrip("."))
                imports.add(_absolute(package, first.value.lstrip("."), level))
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and FILE_NAME.fullmatch(node.value):
                strings.add(node.value)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = _without_docstring(node.body)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [one for one in value if not isinstance(one, ast.ImportFrom)])
    dumped = ast.dump(tree, annotate_fields=False).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(dumped).hexdigest() if tree.body or froms else ""
    return Parsed(digest, tuple(sorted(froms)), tuple(sorted(imports)), frozenset(strings))


def _tree(data: bytes) -> ast.Module | None:
    try:
        return ast.parse(data)
    except (
        SyntaxError,
        ValueError,
        RecursionError,
    ):  # such a file cannot be imported either
        return None


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_docstring and isinstance(first.value.value, str) else body  # type: ignore[union-attr]


@dataclass
class _Cache:
    """Cache of parsed files in the user's cache folder, by module name, size, mtime and path.

    Without it, each process spends two seconds on parsing vlpipe's own stages.
    """

    parsed: dict[str, Parsed] = field(default_factory=dict)
    is_new: bool = False
    is_loaded: bool = False

    def path(self) -> Path:
        return private_folder() / f"sources3-{sys.version_info[0]}.{sys.version_info[1]}.json"

    def load(self) -> None:
        if self.is_loaded:
            return
        self.is_loaded = True
        try:
            found = json.loads(self.path().read_bytes())
            self.parsed = {
                k: Parsed(str(d), tuple((str(b), str(n), str(h)) for b, n, h in f), tuple(i), frozenset(s))
                for k, (d, f, i, s) in found.items()
            }
        except (OSError, RuntimeError):  # no cache file, or no home folder: parse again
            return
        except (ValueError, TypeError, AttributeError) as error:
            warnings.warn(
                f"the cache {self.path()} is damaged and is rebuilt: {error}", VlpipeWarning, stacklevel=2
            )

    def save(self) -> None:
        """Stores the parsed files for the next process."""
        if not self.is_new:
            return
        self.is_new = False
        plain = {
            k: [p.digest, p.froms, p.imports, sorted(p.strings)]
            for k, p in list(self.parsed.items())[-MAX_PARSED:]
        }
        try:
            write_private(self.path(), json.dumps(plain).encode())
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"cannot write the cache of hashed source files, so the next start hashes them again: {error}",
                VlpipeWarning,
                stacklevel=2,
            )


_cache = _Cache()
load_parsed, save_parsed = _cache.load, _cache.save


def _absolute(package: str, module: str, level: int) -> str:
    """Returns the full module name that `from ..module` refers to in `package`."""
    if level:
        parts = package.split(".")
        package = ".".join(parts[: len(parts) - level + 1])
        return f"{package}.{module}".strip(".")
    return module


def _calls_import(func: ast.expr) -> bool:
    name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
    return name in ("import_module", "__import__", "find_spec")
