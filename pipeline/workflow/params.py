"""Stage parameters: find the class by import path, validate values, list file parameters, convert to plain JSON."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vlpipe.pipeline.errors import VlpipeError, did_you_mean, one_line, raised_in, shown
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, RefusedScalar, place

S = TypeVar("S", bound=Stage)


@functools.lru_cache(maxsize=256)
def adapter(cls: type) -> TypeAdapter[Any]:
    """Returns the validator of a dataclass; cached, because it is slow to build."""
    return TypeAdapter(cls)


def find(use: str, below: str, hint: bool = True) -> type:
    """Returns the class at an import path MODULE:CLASS, such as `filter.itm:ItmFilter` or `my_pkg.stages:Mine`.

    below: package in which MODULE is looked up first; hint: an error may name a similar module, for which all files below
    are read. Raises ValueError if there is no such class or its import fails.
    """
    module_name, _, class_name = use.partition(":")
    if not (class_name and all(part.isidentifier() for part in (*module_name.split("."), class_name))):
        raise ValueError(
            f"{shown(use, 200)} is not an import path; wanted MODULE:CLASS below {below}, or my_package.module:Class"
        )
    full = next((n for n in (f"{below}.{module_name}", module_name) if _exists(n)), None)
    if full is None:
        near = (_moved(use, below) or _nearby(module_name, below)) if hint else ""
        raise ValueError(
            f"no module {shown(module_name, 200)}, neither below {below} nor on the Python path{near}"
        )
    module = _import(full)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = [
            n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == full and n[0] != "_"
        ]
        raise ValueError(f"module {full} has no class {shown(class_name)}{did_you_mean(class_name, own)}")
    return found


def _exists(module: str) -> bool:
    parts = module.split(".")
    for end in range(1, len(parts) + 1):  # parents first, because find_spec of a child imports them
        name = ".".join(parts[:end])
        try:
            if importlib.util.find_spec(name) is None:
                return False
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                return False  # a parent is a module, not a package
            raise _import_failed(name, error) from error
        except ValueError:  # a module that has no spec, such as __main__
            if name not in sys.modules:
                return False
        except Exception as error:
            raise _import_failed(name, error) from error
    return True


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise _import_failed(module, error) from error


def _import_failed(module: str, error: Exception) -> ValueError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return ValueError(f"importing {module} needs the module {shown(error.name)}, which is not installed")
    return ValueError(f"importing {module} failed: {type(error).__name__}: {error}")


def modules_below(below: str) -> dict[str, Path]:
    """Returns module name below the package -> file, for all its modules, without importing them."""
    spec = importlib.util.find_spec(below)
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    return {
        ".".join(file.relative_to(folder).with_suffix("").parts): file
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    }


def _moved(use: str, below: str) -> str:
    """Returns `; did you mean ...?` if a class below declares `use`, its first path, as NAME; empty if none does."""
    declared = re.compile(rf'^ +NAME\b.*= "{re.escape(use)}"$', re.MULTILINE)
    for name, file in modules_below(below).items():
        if found := declared.search(text := file.read_text(encoding="utf-8")):
            classes = re.findall(r"^class (\w+)", text[: found.start()], re.MULTILINE)
            return f"; did you mean {name}:{classes[-1]}?"
    return ""


def _nearby(module: str, below: str) -> str:
    """Returns `; did you mean ...?` with the closest module below a package; if none is close, a list of its modules."""
    names = list(modules_below(below))
    if difflib.get_close_matches(module, names, n=1):
        return did_you_mean(module, names)
    group = module.partition(".")[0]
    inside = [n for n in names if n.startswith(group + ".")]
    return did_you_mean(module, inside or {n if "." not in n else n.partition(".")[0] + ".*" for n in names})


def validate(cls: type, values: Map, prefix: str, problems: list[Problem], also: Sequence[str] = ()) -> Any:
    """Returns an instance of the dataclass `cls`, or None if the values do not fit; each mistake is added to `problems`.

    Strict: text never becomes a number. prefix: the step's name, which starts each problem (`caption.top_p: ...`); also:
    other valid keys at the top level, suggested for a misspelled one.
    """
    try:
        return adapter(cls).validate_json(json.dumps(values), strict=True)
    except VlpipeError as error:
        problems.append(values.where.problem(f"{prefix}: {error}"))
    except ValidationError as error:
        found = _by_path(error, values)
        meant = set()  # parameters whose name was misspelled; they are not also reported as missing
        for path in [p for p in found if _is(found[p], "unexpected_keyword_argument")]:
            known = [*_fields_at(cls, path[:-1]), *(also if len(path) == 1 else ())]
            meant |= {(*path[:-1], near) for near in difflib.get_close_matches(str(path[-1]), known, n=1)}
            text = f"unknown parameter{did_you_mean(str(path[-1]), known)}"
            problems.append(_problem(values, prefix, path, text))
            del found[path]
        for path, errors in found.items():
            if not (path in meant and _is(errors, "missing")):
                problems.append(_problem(values, prefix, path, _sentence(path, errors)))
    except Exception as error:  # raised by `__post_init__` or a default factory
        text = f"{cls.__name__} failed: {type(error).__name__}: {error}{raised_in(error)}"
        problems.append(values.where.problem(f"{prefix}: {text}"))
    return None


def _by_path(error: ValidationError, values: Map) -> dict[tuple[str | int, ...], list[Any]]:
    """Groups Pydantic's errors by their path in the YAML. Labels that Pydantic adds for union members are dropped."""
    found: dict[tuple[str | int, ...], list[Any]] = {}
    for each in error.errors(include_url=False):
        node: Any = values
        path: list[str | int] = []
        for key in each["loc"]:
            if key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int):
                node = node[key]
                path.append(key)
        if each["type"] == "missing":
            path.append(each["loc"][-1])
        if not isinstance(node, RefusedScalar):
            found.setdefault(tuple(path), []).append(each)
    return found


def _is(errors: Sequence[Any], kind: str) -> bool:
    return bool(errors[0]["type"] == kind)


def _problem(values: Map, prefix: str, path: Sequence[str | int], text: str) -> Problem:
    name = one_line(".".join([prefix, *map(str, path)]), 120)
    return place(values, path, values.where).problem(f"{name}: {text}")


def _fields_at(cls: type, path: Sequence[str | int]) -> list[str]:
    """Returns the field names of the dataclass at `path` inside `cls`; empty if there is none."""
    for key in path:
        if isinstance(key, str):
            hint = get_type_hints(cls).get(key)
            kinds = (hint, *get_args(hint))
            inner = [t for t in kinds if isinstance(t, type) and dataclasses.is_dataclass(t)]
            if not inner:
                return []
            cls = inner[0]
    return [f.name for f in dataclasses.fields(cls)]


def _sentence(path: Sequence[str | int], errors: Sequence[Any]) -> str:
    """Returns one text for the errors of a key (several for a union): `wanted a number or null, got "a"`."""
    if _is(errors, "missing"):
        return "missing, and it has no default"
    wanted = list(dict.fromkeys(_wanted(e) for e in errors))
    if not path:  # raised by the stage's own check of its parameters
        return wanted[0]
    came = json.dumps(errors[0]["input"], ensure_ascii=False)
    came = came if len(came) <= 80 else came[:77] + "..."
    return f"{' or '.join([wanted[0], *(w.removeprefix('wanted ') for w in wanted[1:])])}, got {came}"


_PLAINER = (
    ("Value error, ", ""),
    ("Input should be greater", "Input should be a number greater"),
    ("Input should be less", "Input should be a number less"),
    ("Input should be ", "wanted "),
    ("a valid integer", "a whole number"),
    ("a valid array", "a list"),
    ("an object", "a mapping"),
    ("a valid ", "a "),
)


def _wanted(error: Any) -> str:
    text = str(error["msg"])
    for old, new in _PLAINER:
        text = text.replace(old, new)
    return text


def stray_references(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Returns (dotted path, step) of each `{from: STEP}` that stayed a plain mapping because its field is not a File."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, File)):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if isinstance(value.get("from"), str) and set(value) <= {"from", "path"}:
            return [(path, value["from"])]
        pairs = [(str(k), v) for k, v in value.items()]
    else:
        pairs = [(str(i), v) for i, v in enumerate(value)] if isinstance(value, (list, tuple)) else []
    return [hit for key, item in pairs for hit in stray_references(item, f"{path}.{key}" if path else key)]
