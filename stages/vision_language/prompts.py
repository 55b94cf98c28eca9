"""Prompts with fields of a row, such as `{alt_text}`: those of `endpoint.prompts`, for models in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.stages.endpoint import prompts
from vlpipe.stages.endpoint.prompts import Template as Template


def need_fields(schema: pa.Schema, templates: Sequence[Template]) -> None:
    """Raises SchemaError if a field is neither one of texts, such as `{alt_text}`, nor a column of texts or numbers."""
    try:
        for template in templates:
            prompts.need_fields(schema, template.fields)
    except VlpipeError as error:
        raise SchemaError(str(error)) from error


def filled(
    table: pa.Table, templates: Sequence[Template], clean: Callable[[str], str] = str
) -> list[list[str]]:
    """Returns for each row its prompts, one per template.

    clean: applied to the values, which are the web's, and not to the templates.
    """
    fields = list(dict.fromkeys(name for template in templates for name in template.fields))
    values = [{name: clean(value) for name, value in one.items()} for one in prompts.values_of(table, fields)]
    return [[template.filled(one) for template in templates] for one in values]
