"""The column that a judge adds. A score is comparable only with scores of the same judge, so each has its own column."""

from __future__ import annotations

import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import with_field
from vlpipe.stages.common.rule import encoder_of, scored

SCORES = pa.list_(pa.float32())  # one per text, null: not judged


def with_score(inp: pa.Schema, column: str, encoder: str, who: str) -> pa.Schema:
    """Returns `inp` with the scores of a judge: a column SCORES that records its `encoder`, to which thresholds are bound.

    Raises SchemaError if the rows have a column of that name which this judge did not make: it would be lost.
    who: the stage, for the error text.
    """
    if column in inp.names:
        there = encoder_of(inp, column)
        if there != encoder or inp.field(column).type != SCORES:
            what = f"scores of {there}" if there else f"a column of type {inp.field(column).type}"
            raise SchemaError(
                f"{who}: the rows have {what} in column {column!r}, which scores of {encoder} would replace; "
                "set another `column`, and both stand side by side"
            )
    return with_field(inp, scored(column, SCORES, encoder))
