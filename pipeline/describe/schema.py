"""A JSON Schema of workflow files, made from the installed stages: editors complete and check YAML with it."""

from __future__ import annotations

import copy
from typing import Any

from vlpipe.pipeline.describe.catalogue import Described, describe, entries, parameter_schemas
from vlpipe.pipeline.workflow.load import STAGES, TOP_KEYS
from vlpipe.pipeline.workflow.params import find
from vlpipe.pipeline.workflow.step_keys import EngineKeys

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAME = {"type": ["string", "object"]}  # an object names cells of a matrix: {from: STEP, AXIS: LABEL}
NAMES = {"anyOf": [NAME, {"type": "array", "items": NAME}]}
FILLED = {"type": "string", "pattern": r"\$\{[^{}]*\}"}  # `${axis}`: its type is that of the axis's value


def workflow_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a workflow file.

    It checks names and types of parameters of installed stages. Names of steps, columns and files are checked by
    `vlpipe plan`. A stage of one's own is accepted with any parameters.
    """
    defs: dict[str, Any] = {}
    rules = []
    for entry in entries():
        about = describe(entry.use)
        properties = {**_step_properties(about, defs), **_engine_properties(defs)}
        defs[entry.use] = {"properties": properties, "additionalProperties": False}
        rules.append(_if_use(entry.use))
    step = {
        "type": "object",
        "properties": {"use": {"type": "string", "anyOf": [_uses(), {"pattern": "^[\\w.]+:\\w+$"}]}},
        "anyOf": [{"required": ["use"]}, {"required": ["same_as"]}],
        "allOf": rules,
    }
    return {
        "$schema": DIALECT,
        "title": "vlpipe workflow",
        "type": "object",
        "required": ["steps"],
        "properties": _top(),
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        "$defs": {"step": step, **defs},
    }


def _top() -> dict[str, Any]:
    """Returns the schemas of the keys at the top of a file."""
    change = {"anyOf": [{"type": "object"}, {"type": "null"}]}  # of a profile; null removes the step
    found = {
        "name": {"type": "string", "description": "name of the workflow; default: that of the file"},
        "root": {"type": "string", "description": "folder or URL of the outputs; default: runs/NAME"},
        "matrix": {
            "type": "object",
            "description": "axes of steps that exist once per value: AXIS: [VALUE, ...] or AXIS: {LABEL: VALUE}",
        },
        "steps": {
            "type": "object",
            "description": "steps in the order they run; `from` names steps above",
            "propertyNames": {"pattern": "^[a-z0-9_]+$"},
            "additionalProperties": {"$ref": "#/$defs/step"},
        },
        "repeat": {
            "type": "object",
            "description": "steps that run once per round",
            "properties": {"rounds": {"type": "integer", "minimum": 1}, "steps": NAMES},
            "additionalProperties": False,
        },
        "profiles": {
            "type": "object",
            "description": "named changes: PROFILE: {STEP: {PARAMETER: VALUE}}; a step that is null is left out",
            "additionalProperties": {"type": "object", "additionalProperties": change},
        },
    }
    assert set(found) == set(TOP_KEYS)
    return found


def _uses() -> dict[str, Any]:
    return {"enum": [entry.use for entry in entries()]}


def _if_use(use: str) -> dict[str, Any]:
    of_use = {"properties": {"use": {"const": use}}, "required": ["use"]}
    return {"if": of_use, "then": {"$ref": f"#/$defs/{use.replace('/', '~1')}"}}


def _step_properties(about: Described, defs: dict[str, Any]) -> dict[str, Any]:
    """Returns parameter -> schema of a stage. Definitions that these refer to are added to `defs` below the stage's name."""
    properties, inner = parameter_schemas(find(about.use, STAGES))
    _add(inner, defs, about.use)
    found = {}
    for one in about.parameters:
        schema = _filled_or(_renamed(properties[one.name], about.use))
        text = one.about or one.type
        found[one.name] = {
            **schema,
            "description": text,
            **({} if one.required else {"default": one.default}),
        }
    return found


def _engine_properties(defs: dict[str, Any]) -> dict[str, Any]:
    properties, inner = parameter_schemas(EngineKeys)
    _add(inner, defs, "engine")
    own = {name: _filled_or(_renamed(schema, "engine")) for name, schema in properties.items()}
    return {"use": {"type": "string"}, "from": NAMES, "same_as": {"type": "string"}, "matrix": NAMES, **own}


def _add(inner: dict[str, Any], defs: dict[str, Any], owner: str) -> None:
    for name, schema in inner.items():
        defs.setdefault(f"{owner}.{name}", _filled_inside(_renamed(schema, owner)))


def _filled_or(schema: Any) -> Any:
    """Returns a schema that takes `${axis}` in place of the value, and of each value within it."""
    return {"anyOf": [_filled_inside(schema), FILLED]} if isinstance(schema, dict) else schema


def _filled_inside(schema: dict[str, Any]) -> dict[str, Any]:
    inside: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("additionalProperties", "items"):
            inside[key] = _filled_or(value)
        elif key == "properties":
            inside[key] = {name: _filled_or(one) for name, one in value.items()}
        elif key == "anyOf":
            inside[key] = [_filled_inside(one) for one in value]
    return {**schema, **inside}


def _renamed(schema: Any, owner: str) -> Any:
    """Returns a copy whose references name the definitions of one stage: two stages may have different ones of one name."""
    if isinstance(schema, dict):
        made = {key: _renamed(value, owner) for key, value in schema.items() if key != "title"}
        if isinstance(ref := made.get("$ref"), str):
            made["$ref"] = ref.replace("#/$defs/", f"#/$defs/{owner}.")
        return made
    return [_renamed(one, owner) for one in schema] if isinstance(schema, list) else copy.copy(schema)
