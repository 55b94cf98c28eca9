"""Structured output: a JSON schema that the server keeps to, and columns made of the answers.

The schema describes an object whose properties are strings, numbers, integers, booleans, or arrays of those. Each property
becomes a column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.endpoint.outcomes import plain

TYPES = {"string": pa.string(), "number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}
MAX_ITEMS = 1_000
MAX_INT = 2**63


class BadJson(ValueError):
    """The text is not what the schema asks for."""


def fields_of(schema: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Returns property -> type of its column. Raises VlpipeError for a schema that has other properties."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        raise VlpipeError("json_schema must have `type: object` and `properties`")
    return {name: _type(name, one) for name, one in properties.items()}


def _type(name: str, spec: Any) -> pa.DataType:
    kind = spec.get("type") if isinstance(spec, Mapping) else None
    if kind == "array":
        return pa.list_(_type(name, spec.get("items")))
    if kind not in TYPES:
        raise VlpipeError(
            f"json_schema: property {name!r} has the type {kind!r}; wanted {', '.join(TYPES)}, or an array of one"
        )
    return TYPES[kind]


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `response_format` of the request's body, as OpenAI, vLLM and SGLang read it."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def parsed(text: str, fields: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Returns property -> value, None for a missing one. Raises BadJson if the text is no such object.

    A fence of backquotes around the JSON is removed, which models like to write.
    """
    text = text.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadJson(f"not JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise BadJson("not a JSON object")
    return {name: _value(name, found.get(name), dtype) for name, dtype in fields.items()}


def _value(name: str, value: Any, dtype: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(dtype):
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise BadJson(f"{name} is not an array of at most {MAX_ITEMS}")
        return [_value(name, one, dtype.value_type) for one in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if pa.types.is_string(dtype) and isinstance(value, str):
        return plain(value)
    if pa.types.is_boolean(dtype) and isinstance(value, bool):
        return value
    if pa.types.is_floating(dtype) and is_number and abs(value) < 1e300:
        return float(value)
    if pa.types.is_integer(dtype) and is_number and abs(value) < MAX_INT and value == int(value):
        return int(value)
    raise BadJson(f"{name} is not of type {dtype}")
