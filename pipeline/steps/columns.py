"""The output columns of the steps of a workflow, derived step by step, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, WorkflowError, raised_in, shown
from vlpipe.pipeline.shard import is_heavy
from vlpipe.pipeline.stage import MapStage, SourceStage
from vlpipe.pipeline.steps.checked import CheckedWorkflow, base_name
from vlpipe.pipeline.steps.step import Step


def schemas(workflow: CheckedWorkflow) -> dict[str, pa.Schema]:
    """Returns step name -> output columns, heavy ones included. They are derived step by step, without data.

    Raises WorkflowError if a step cannot use the columns of its inputs.
    """
    problems: list[tuple[int, str]] = []
    found = schemas_of(workflow.steps, problems)
    if problems:
        raise WorkflowError(workflow.path, problems)
    return found


def schemas_of(steps: Sequence[Step], problems: list[tuple[int, str]]) -> dict[str, pa.Schema]:
    """As `schemas`; a step whose columns cannot be derived is left out, and (line, text) added to `problems`."""
    found: dict[str, pa.Schema] = {}
    for step in steps:
        if all(name in found for name in step.inputs):  # else the input step failed and is reported
            try:
                found[step.name] = step.stage.schema(_schema_in(step, found))
            except Exception as error:
                problems.append((step.line, f"{base_name(step.name)}: {error_text(error, step, 'schema')}"))
    return found


def error_text(error: Exception, step: Step, method: str) -> str:
    """Returns the text for an exception of a stage's `method`: its own if it is of a type that stages raise for bad input,
    else `Caption.schema failed: TypeError: ...` with file and line."""
    if isinstance(error, (VlpipeError, ValueError, OSError)):
        return str(error)
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return error.args[0]  # PyArrow raises KeyError for a missing column
    name = f"{type(step.stage).__name__}.{method}"
    return f"{name} failed: {type(error).__name__}: {error}{raised_in(error)}"


def _schema_in(step: Step, found: Mapping[str, pa.Schema]) -> pa.Schema:
    if isinstance(step.stage, SourceStage):
        return step.stage.row_schema()
    if not step.inputs:
        return pa.schema([])
    first, *others = step.inputs
    if not isinstance(step.stage, MapStage):
        return found[first]
    for other in others:
        _check_same(first, found[first], other, found[other])
    return pa.schema([common_metadata(f, [found[other] for other in others]) for f in found[first]])


def common_metadata(field: pa.Field, others: Sequence[pa.Schema]) -> pa.Field:
    """Returns the field with what all inputs of the step have in common of its metadata (such as the model of a score)."""
    common = set((field.metadata or {}).items())
    for other in others:
        common &= set((other.field(field.name).metadata or {}).items())
    return field.with_metadata(dict(sorted(common)) or None)


def _check_same(a: str, left: pa.Schema, b: str, right: pa.Schema) -> None:
    """Raises VlpipeError unless inputs `a` and `b` of a step have the same columns and types, in any order."""
    for name in sorted({*left.names, *right.names}):
        kinds = [_kind(schema, name) for schema in (left, right)]
        if kinds[0] != kinds[1]:
            types = f"{kinds[0]} in {shown(base_name(a))} and {kinds[1]} in {shown(base_name(b))}"
            raise VlpipeError(f"the inputs must have the same columns, but column {shown(name)} is {types}")


def _kind(schema: pa.Schema, name: str) -> str:
    if name not in schema.names:
        return "not there"
    field = schema.field(name)
    return f"heavy {field.type}" if is_heavy(field) else str(field.type)
