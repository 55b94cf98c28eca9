"""Checks a stage class when a workflow names it. Undetected, these mistakes fail later in unclear ways, or silently."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from vlpipe.pipeline.errors import did_you_mean, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.stage import GatherStage, MapStage, SourceStage, Stage
from vlpipe.pipeline.workflow.params import adapter

BASES = (Stage, MapStage, SourceStage, GatherStage)
MAX_VERSION = 2**31


def class_problems(cls: type, engine_keys: Collection[str]) -> list[str]:
    """Returns one sentence per mistake in a stage class. engine_keys: names that no parameter may have."""
    if not (issubclass(cls, (MapStage, GatherStage)) and dataclasses.is_dataclass(cls)):
        name = shown(f"{cls.__module__}:{cls.__qualname__}", 200)
        return [
            f"{name} is not a stage; wanted a dataclass that inherits from MapStage, SourceStage or GatherStage"
        ]
    return [f"{cls.__name__}{problem}" for check in _CHECKS for problem in check(cls, engine_keys)]


def _is_dataclass_itself(cls: Any, _: Collection[str]) -> Iterator[str]:
    params = cls.__dataclass_params__
    if "__dataclass_fields__" not in vars(cls):
        lost = [name for name, hint in inspect.get_annotations(cls).items() if not _is_class_var(hint)]
        if lost:
            yield f" is not a dataclass itself, so {', '.join(lost)} would not be parameters; add {WANTED}"
    elif not params.frozen:
        yield f" is not frozen: a parameter could change after its key was made; wanted {WANTED}"
    elif any(not f.kw_only for f in dataclasses.fields(cls)):
        yield f" takes positional parameters; wanted {WANTED}"


WANTED = "@dataclass(frozen=True, kw_only=True)"


def _is_class_var(hint: Any) -> bool:
    return "ClassVar" in hint if isinstance(hint, str) else get_origin(hint) is ClassVar or hint is ClassVar


def _names(cls: Any, engine_keys: Collection[str]) -> Iterator[str]:
    for field in dataclasses.fields(cls):
        if field.name in engine_keys:
            yield f": a parameter cannot be called {field.name!r}, which is a key of every step; give it another name"
        elif any(issubclass(cls, base) and _is_fixed(base, field.name) for base in BASES):
            yield f": a parameter cannot be called {field.name!r}, which every stage has already; give it another name"


def _is_fixed(base: type, name: str) -> bool:
    """True if `base` has a method or constant of this name (`open`, VERSION), which a parameter would replace. False for
    fields of `base` that a stage may declare as a parameter (`num_workers`)."""
    return inspect.isfunction(vars(base).get(name)) or (name in vars(base) and name.isupper())


def _not_in_key(cls: Any, _: Collection[str]) -> Iterator[str]:
    own = [f.name for f in dataclasses.fields(cls)]
    for which in ("NOT_IN_KEY", "ADDED", "ORDERED"):
        names = getattr(cls, which)
        if not isinstance(names, (frozenset, set, tuple, list)):
            yield f".{which}: wanted frozenset({{NAME, ...}}), got {shown(names)}"
            continue
        for name in sorted(map(str, names)):
            if name not in own:
                yield f".{which} names {name!r}, which is not a parameter{did_you_mean(name, own)}"


def _before(cls: Any, _: Collection[str]) -> Iterator[str]:
    if not isinstance(cls.BEFORE, Mapping):
        yield f".BEFORE: wanted a mapping of parameters in ADDED to values, got {shown(cls.BEFORE)}"
        return
    for name in sorted(map(str, cls.BEFORE)):
        if name not in cls.ADDED:
            yield f".BEFORE names {name!r}, which is not in ADDED"


def _class_values(cls: Any, _: Collection[str]) -> Iterator[str]:
    for name, (wanted, is_right) in _VALUES.items():
        value = getattr(cls, name, None)
        if hasattr(cls, name) and not isinstance(value, property) and not is_right(value):
            yield f".{name}: wanted {wanted}, got {shown(value)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_FLAG = ("True or False", _is_flag)
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "NAME": ("text", lambda v: isinstance(v, str)),
    "VERSION": ("a whole number from 0", lambda v: type(v) is int and 0 <= v < MAX_VERSION),
    "READS_HEAVY": (
        "a tuple of column names",
        lambda v: isinstance(v, tuple) and all(isinstance(name, str) for name in v),
    ),
    "ROW_GROUP_ROWS": ("a whole number from 1", lambda v: type(v) is int and v >= 1),
    "SHARD_ROWS": ("a whole number from 1", lambda v: type(v) is int and v >= 1),
    "MAX_REJECT_RATE": ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    **dict.fromkeys(
        ("TORCH", "LOADS_WEIGHTS", "FAN_OUT", "FILTERS", "CONSERVES", "LAUNCHES", "COPIES"), _FLAG
    ),
}


def _methods(cls: Any, _: Collection[str]) -> Iterator[str]:
    base = next(b for b in (SourceStage, MapStage, GatherStage) if issubclass(cls, b))
    for name in ("row_schema", "rows", "open", "run"):
        if getattr(getattr(cls, name, None), "__isabstractmethod__", False):
            yield f" has no method {name}(), which every {base.__name__} needs"
    opens = getattr(cls, "open", None)
    if inspect.isgeneratorfunction(opens) or inspect.isasyncgenfunction(opens):
        yield ".open yields, so it needs @contextmanager (from contextlib) above it"


def _need_schema(hint: Any) -> None:
    """Raises PydanticUserError if no YAML value can be converted to the type."""
    if isinstance(hint, type):
        adapter(hint)
    else:
        TypeAdapter(hint)


def _types(cls: Any, _: Collection[str]) -> Iterator[str]:
    """Yields a problem for each parameter of a type to which no YAML value can be converted."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:  # annotations of a user's module may raise anything
        yield f": the type of a parameter cannot be resolved: {type(error).__name__}: {error}"
        return
    for field in dataclasses.fields(cls):
        try:
            _need_schema(hints[field.name])
        except PydanticUserError:
            kind = getattr(hints[field.name], "__name__", str(hints[field.name]))
            yield f".{field.name}: no YAML value can be converted to {kind}"


def _list_files(cls: Any, _: Collection[str]) -> Iterator[str]:
    """Yields a problem for each ListFile of a stage that lists no rows: its content is not in the keys of shards."""
    if issubclass(cls, SourceStage) or any(_types(cls, ())):
        return
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if any(issubclass(kind, ListFile) for kind in _classes(hints[field.name])):
            yield f".{field.name}: only a SourceStage, whose method rows() reads it, may have a ListFile; wanted a File"


def _classes(hint: Any) -> Iterator[type]:
    """Yields the classes that a type is made of: File and dict for `dict[str, File] | None`."""
    if get_origin(hint) is None and isinstance(hint, type):
        yield hint
    for inner in get_args(hint):
        yield from _classes(inner)


_CHECKS = (_is_dataclass_itself, _names, _not_in_key, _before, _class_values, _methods, _types, _list_files)


def idle_keys(cls: type[Stage], given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, problem) for each engine key in `given` that has no effect on a stage of class `cls`."""
    lists_rows = issubclass(cls, (SourceStage, GatherStage))
    if "shard_rows" in given and not lists_rows:
        yield (
            "shard_rows",
            "shard_rows is for steps that list or gather rows; this one keeps the shards it reads",
        )
    if "max_reject_rate" in given and issubclass(cls, GatherStage):
        yield "max_reject_rate", "max_reject_rate is for steps that work row by row"
