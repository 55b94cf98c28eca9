"""Which columns a training step reads: those of the makers of its streams."""

from __future__ import annotations

import pyarrow as pa

from vlpipe.models.build import find
from vlpipe.pipeline.shard import need
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.train.recipe import MAKERS, MODELS, Recipe

TYPES = {"image": pa.binary(), "texts": TEXTS}  # columns whose type is known before any maker runs


def need_columns(recipe: Recipe, schema: pa.Schema) -> None:
    """Raises SchemaError if `schema` lacks a column that the recipe's makers read.

    With `init` and without `model: {use: ...}`, the class is known only when the step runs; then only `id` is needed.
    """
    need(schema, "Train", id=pa.string())
    for maker in maker_classes(recipe):
        for column in maker.COLUMNS:
            need(schema, "Train", **{column: TYPES.get(column) or column_type(schema, column)})
        if maker.NEEDS_TEXT:
            need(schema, "Train", texts=TEXTS)


def column_type(schema: pa.Schema, name: str) -> pa.DataType:
    """Returns the type of a column; null if it is not there, which `need` then says."""
    return schema.field(name).type if name in schema.names else pa.null()


def maker_classes(recipe: Recipe) -> list[type[Maker]]:
    """Returns the class of each stream's maker, without building a model."""
    use = (recipe.model or {}).get("use")
    if recipe.init is not None and use is None:
        return []
    streams = find(recipe.model_spec()["use"], MODELS).STREAMS
    return [find(recipe.streams.get(name, {}).get("use", maker), MAKERS) for name, maker in streams.items()]
