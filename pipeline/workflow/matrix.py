"""`matrix:` of a workflow: axes of values, and steps that exist once for each combination of them.

    matrix:
      seed: [0, 1, 2]
      arm: {none: {rows: web}, cf: {rows: kept}}
    steps:
      train: {matrix: [arm, seed], from: ["${arm.rows}", human], seed: "${seed}", ...}

gives the steps `train@none-0`, `train@none-1`, ..., `train@cf-2`. `${seed}` is the value of an axis, `${arm.rows}` a key of
it; a parameter or list item `${arm.rows?}` is left out where the value lacks the key. `$${` stands for `${`.

In a step that has an axis, the name of another step with this axis means the one with the same label. `references.py`
resolves names.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from vlpipe.pipeline.errors import did_you_mean, one_line, shown
from vlpipe.pipeline.workflow.draft import MAX_NAME, STEP_NAME, DraftStep, Setting
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, RefusedScalar, Seq, Where

Axes = Mapping[str, Mapping[str, Any]]  # axis -> label -> value


class Missing(Enum):
    """The value of `${axis.key?}` where there is no such key. An Enum stays itself when it is copied."""

    MISSING = 0


PREVIOUS = "previous"
MAX_CELLS = 1_000  # steps made of one
MISSING = Missing.MISSING
NOT_AXES = ("from", "path", "first", "use")  # keys that stand beside an axis in a reference
LABEL = re.compile(r"[a-z0-9_]+")
_VALUE = re.compile(r"\$(\$?)\{([^{}]*)\}")


def matrix_axes(file: Map, chosen: Map, settings: Sequence[Setting], problems: list[Problem]) -> Axes:
    """Returns the axes of the file's `matrix:` as the profile (`chosen`) and `--set matrix.AXIS=[...]` leave them.

    Where the file gives an axis a mapping LABEL: VALUE, a list in a profile or in a setting selects labels.
    """
    written = _mapping(file, "matrix", problems)
    axes = {name: _labelled(name, value, written.at[name], problems) for name, value in written.items()}
    over = _mapping(chosen, "matrix", problems) if "matrix" in chosen else Map(file.where)
    changes = [(name, value, over.at[name]) for name, value in over.items()]
    for one in settings:
        if len(one.keys) == 1:
            changes.append((one.keys[0], one.value, one.where))
        else:
            problems.append(one.where.problem("wanted matrix.AXIS=[VALUE, ...]"))
    for name, value, where in changes:
        if label_of(value) is not None:
            value = _list_of(value, where)
        if name not in axes:
            problems.append(
                where.problem(f"matrix.{name}: the file has no such axis{did_you_mean(name, axes)}")
            )
        elif isinstance(written[name], Map) and not isinstance(value, Map):
            axes[name] = _selected(name, axes[name], value, where, problems)
        else:
            axes[name] = _labelled(name, value, where, problems)
    return axes


def _mapping(of: Map, key: str, problems: list[Problem]) -> Map:
    found = of.get(key, Map(of.where))
    if isinstance(found, Map):
        return found
    problems.append(
        of.at[key].problem(f"{key}: wanted a mapping AXIS: [VALUE, ...] or AXIS: {{LABEL: VALUE}}")
    )
    return Map(of.where)


def _labelled(name: str, values: object, where: Where, problems: list[Problem]) -> dict[str, Any]:
    """Returns label -> value of an axis."""

    def say(text: str, at: Where = where) -> None:
        problems.append(at.problem(f"matrix.{one_line(name, 60)}: {text}"))

    if not STEP_NAME.fullmatch(name) or name in NOT_AXES:
        say("the name of an axis has lower-case letters, digits and _, and is none of " + ", ".join(NOT_AXES))
    found: dict[str, Any] = {}
    if isinstance(values, Map):
        for label, value in values.items():
            if not LABEL.fullmatch(label):
                say(f"label {shown(label)}: wanted lower-case letters, digits and _", values.at[label])
            found[label] = value
    elif isinstance(values, Seq):
        for value, at in zip(values, values.at, strict=True):
            short = label_of(value)
            if short is None:
                say(f"{shown(value)} is no number or text; write LABEL: VALUE", at)
            elif short in found:
                say(f"{shown(value)} has the label of a value before it, {shown(short)}", at)
            else:
                found[short] = value
    if PREVIOUS in found:
        say(f"{PREVIOUS} cannot be a label: it means the round before")
    if not found and not any(text.startswith(f"matrix.{name}:") for _, text in problems):
        say(f"wanted a list of values or a mapping LABEL: VALUE, got {shown(values)}")
    return found


def label_of(value: object) -> str | None:
    """Returns the label of a number or text: lower-case, each run of other characters than letters and digits as one _."""
    if isinstance(value, Map | Seq) or value is None:
        return None
    return re.sub(r"[^a-z0-9_]+", "_", str(value).lower()) or None


def _list_of(value: object, where: Where) -> Seq:
    one = Seq()
    one.put(value, where)
    return one


def _selected(
    name: str, axis: Mapping[str, Any], value: object, where: Where, problems: list[Problem]
) -> dict[str, Any]:
    """Returns the part of an axis whose labels are listed."""
    labels = [label_of(one) for one in value] if isinstance(value, Seq) else []
    if not labels:
        problems.append(where.problem(f"matrix.{name}: wanted labels of the axis: {', '.join(axis)}"))
    for label in labels:
        if label not in axis:
            text = f"matrix.{name}: no label {shown(label)}{did_you_mean(str(label), axis)}"
            problems.append(where.problem(text))
    return {label: one for label, one in axis.items() if label in labels} or dict(axis)


def cells(base: str, params: Map, axes: Axes, problems: list[Problem]) -> list[dict[str, str]]:
    """Returns the combinations of labels for which a step exists, the last axis changing fastest; [{}] without `matrix`."""
    if "matrix" not in params:
        return [{}]
    before, where = len(problems), params.at["matrix"]
    names = params["matrix"] if isinstance(params["matrix"], Seq) else [params["matrix"]]
    for name in names:
        if not isinstance(name, str) or name not in axes:
            why = did_you_mean(str(name), axes) if axes else "; the workflow has no `matrix` with axes"
            problems.append(where.problem(f"{base}.matrix: no axis {shown(name)}{why}"))
    if not names or len({str(name) for name in names}) < len(names):
        problems.append(where.problem(f"{base}.matrix: wanted names of axes, each once"))
    if len(problems) > before:
        return []
    if math.prod(len(axes[name]) for name in names) > MAX_CELLS:
        problems.append(where.problem(f"{base}.matrix: more than {MAX_CELLS:,} steps"))
        return []
    if not all(axes[name] for name in names):
        return []  # its mistake is already reported
    made = [dict(zip(names, labels, strict=True)) for labels in itertools.product(*(axes[n] for n in names))]
    longest = max(len(name_in(base, cell)) for cell in made)
    if longest > MAX_NAME:
        problems.append(
            where.problem(
                f"{base}.matrix: a step name has {longest} characters, at most {MAX_NAME} are allowed"
            )
        )
    return made


def name_in(base: str, cell: Mapping[str, str]) -> str:
    """Returns the name of a step in one cell, `train@cf-0`; `base` without a cell."""
    return f"{base}@{'-'.join(cell.values())}" if cell else base


def fill(step: DraftStep, axes: Axes, problems: list[Problem]) -> None:
    """Replaces `${...}` in the parameters of a step by the values of its cell."""
    before = len(problems)
    filled = _filled(step.params, step.params.where, step.base, step, axes, problems)
    step.params, step.broken = filled, step.broken or len(problems) > before


def _filled(node: Any, where: Where, path: str, step: DraftStep, axes: Axes, problems: list[Problem]) -> Any:
    if isinstance(node, Map):
        made = Map(node.where)
        for key, item in node.items():
            if step.cell and "${" in key:
                problems.append(
                    node.at[key].problem(
                        f"{one_line(path, 120)}: ${{...}} is replaced in values, not in keys"
                    )
                )
            value = _filled(item, node.at[key], f"{path}.{key}", step, axes, problems)
            if value is not MISSING:
                made.put(key, value, node.at[key])
        return made
    if isinstance(node, Seq):
        items = Seq()
        for i, (item, at) in enumerate(zip(node, node.at, strict=True)):
            value = _filled(item, at, f"{path}.{i}", step, axes, problems)
            if value is not MISSING:
                items.put(value, at)
        return items
    if not isinstance(node, str) or "${" not in node:
        return node

    def value_of(found: re.Match[str]) -> Any:
        try:
            return _value(found, step, axes)
        except ValueError as error:
            if not step.broken:  # else its matrix has a mistake, which is already reported
                problems.append(where.problem(f"{one_line(path, 120)}: {error}"))
            return RefusedScalar("")

    whole = _VALUE.fullmatch(node)
    if whole and not whole[1]:
        return copy.deepcopy(value_of(whole))
    return _VALUE.sub(lambda found: _text(value_of(found), found, where, path, problems), node)


def _text(value: Any, found: re.Match[str], where: Where, path: str, problems: list[Problem]) -> str:
    if isinstance(value, Map | Seq) or value is None or value is MISSING:
        what = "missing" if value is MISSING else shown(value)
        text = f"{one_line(path, 120)}: {found[0]} is {what}, which cannot be a part of a text"
        problems.append(where.problem(text))
    return str(value)


def _value(found: re.Match[str], step: DraftStep, axes: Axes) -> Any:
    """Returns what one `${...}` stands for. Raises ValueError with the reason if it stands for nothing."""
    written = found[2].strip()
    name, *keys = written.removesuffix("?").split(".")
    if found[1]:
        return found[0][1:]  # $${x} stands for ${x}
    if name not in step.cell:
        if name in axes:
            raise ValueError(
                f"{found[0]}: the step has no such axis; add matrix: [{', '.join([*step.cell, name])}]"
            )
        if not step.cell:
            return found[0]  # plain text in a step without matrix
        raise ValueError(
            f"{found[0]}: no axis {shown(name)}{did_you_mean(name, step.cell)}; $${{ stands for ${{"
        )
    value = axes[name][step.cell[name]]
    for key in keys:
        if not isinstance(value, Map) or key not in value:
            if written.endswith("?"):
                return MISSING
            known = value if isinstance(value, Map) else ()
            text = (
                f"{found[0]}: {name} {shown(step.cell[name])} has no {shown(key)}{did_you_mean(key, known)}"
            )
            raise ValueError(f"{text}; {found[0][:-1]}?}} leaves the parameter out where it is missing")
        value = value[key]
    return value
