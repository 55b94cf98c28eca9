"""Reads the scores of a judge: a column with one number per text, or `texts.score`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import SchemaError
from vlpipe.stages.common.rule import Rule, check_encoder, place
from vlpipe.stages.common.texts import FlatTexts

FIELD = "texts."  # beginning of the name of a field of texts


def check_scores(schema: pa.Schema, column: str, encoder: str, who: str) -> None:
    """Raises SchemaError unless the column has one number per text, made by `encoder`. who: the stage, for error texts.

    Scores of an encoder can be compared with each other without knowing it, but not with a constant: `encoder` "" is any.
    """
    try:
        found = place(Rule(column=column, op=">=", value=0.0, encoder=encoder), schema)
        if encoder:
            check_encoder(Rule(column=column, op=">=", value=0.0, encoder=encoder), schema)
    except SchemaError as error:
        raise SchemaError(f"{who}: {error}") from error
    if not found.judges_texts:
        raise SchemaError(f"{who} needs one number per text, but {column!r} has one value per row")


def scores_of(rows: pa.Table, texts: FlatTexts, column: str) -> npt.NDArray[np.float64]:
    """Returns the scores of the texts of `rows`, (M,) float64; nan: none."""
    if column.startswith(FIELD):
        values = texts.field(column.removeprefix(FIELD))
    else:
        values = texts.aligned(column, rows[column])
    return np.array(pc.fill_null(pc.cast(values, pa.float64()), np.nan).to_numpy(zero_copy_only=False))
