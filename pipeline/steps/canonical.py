"""Parameters of stages as plain JSON, the same for equal ones: for keys, records and `vlpipe stages`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Stage


def as_written(file: File) -> Any:
    """Returns a file parameter as it is written in the YAML."""
    if file.step is None:
        return file.path
    return {"from": file.step, "path": file.path} if file.path else {"from": file.step}


ORDER = "in order"


def canonical(value: Any, file: Callable[[File], Any] = as_written, leave_out: bool = False) -> Any:
    """Returns a parameter as JSON values, the same for equal ones: tuples as lists, sets sorted, an Enum as its value, 10.0
    as 10.

    file: converts a file parameter; leave_out: for keys, omit the fields in `NOT_IN_KEY`, and those in `ADDED` (fields that
    an earlier version did not have) while they have their default, or their value in `BEFORE`; those in `ORDERED` as
    `in_order` gives them. Raises VlpipeError for a type that has no JSON form.
    """
    if isinstance(value, File):
        return file(value)
    if isinstance(value, Enum):
        return canonical(value.value, file, leave_out)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        no = left_out(value) if leave_out else frozenset()
        names = [f.name for f in dataclasses.fields(value) if f.name not in no]
        found = {name: canonical(getattr(value, name), file, leave_out) for name in names}
        ordered: frozenset[str] = getattr(value, "ORDERED", frozenset()) if leave_out else frozenset()
        return {name: in_order(one) if name in ordered else one for name, one in found.items()}
    if isinstance(value, Mapping):
        keys = [canonical(k, file, leave_out) for k in value]
        return {str(k): canonical(v, file, leave_out) for k, v in zip(keys, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [canonical(v, file, leave_out) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(
            (canonical(v, file, leave_out) for v in value), key=lambda v: json.dumps(v, sort_keys=True)
        )
    return _scalar(value)


def in_order(value: Any) -> Any:
    """Returns a JSON value in which each mapping whose keys are not sorted is {ORDER: [[key, value], ...]}: its order then
    remains when keys are sorted."""
    if isinstance(value, list):
        return [in_order(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    pairs = [[key, in_order(one)] for key, one in value.items()]
    return dict(pairs) if list(value) == sorted(value) else {ORDER: pairs}


def from_order(value: Any) -> Any:
    """Returns the value of which `in_order` gave this one."""
    if isinstance(value, list):
        return [from_order(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    pairs = value[ORDER] if set(value) == {ORDER} else value.items()
    return {key: from_order(one) for key, one in pairs}


def recorded(stage: Stage, name: str) -> Any:
    """Returns a parameter for records: as `canonical` gives it, and in order if it is one of ORDERED."""
    found = canonical(getattr(stage, name))
    return in_order(found) if name in stage.ORDERED else found


def left_out(value: Any) -> frozenset[str]:
    """Returns the fields of a dataclass that are not in keys."""
    added: frozenset[str] = getattr(value, "ADDED", frozenset())
    before: Mapping[str, Any] = getattr(value, "BEFORE", {})
    no: frozenset[str] = getattr(value, "NOT_IN_KEY", frozenset())
    own = [f for f in dataclasses.fields(value) if f.name in added]
    old = {f.name: before[f.name] if f.name in before else _default(f) for f in own}
    return no | {name for name, was in old.items() if getattr(value, name) == was}


def _default(of: dataclasses.Field[Any]) -> Any:
    return of.default if of.default_factory is dataclasses.MISSING else of.default_factory()


def _scalar(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)  # JSON has neither inf nor nan
        return int(value) if value.is_integer() and abs(value) < 2**53 else value  # 10.0 and 10 are equal
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    try:
        plain = to_jsonable_python(value, bytes_mode="hex", timedelta_mode="float")
    except PydanticSerializationError as error:
        raise VlpipeError(
            f"a value of type {type(value).__name__} cannot be a parameter: it has no JSON form"
        ) from error
    return _scalar(plain) if isinstance(plain, float) else plain
