"""Scores each text against the image of its row by a model with two encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject
from vlpipe.stages.common.batches import encode_images, made_up, read_prepared, without
from vlpipe.stages.common.scores import not_finite, with_columns
from vlpipe.stages.common.texts import FlatTexts, Mask
from vlpipe.stages.dual_encoders.towers import Encoders, cosine, probability
from vlpipe.stages.inference.ahead import Ahead


def add_scores(
    model: Encoders,
    column: str,
    batch_size: int,
    rows: pa.Table,
    ahead: Ahead,
    sources: Sequence[str] = (),
    as_probability: bool = False,
    where: Mask | None = None,
) -> Out:
    """Returns `rows` with the column: list<float32>, one score per text, and a reject per image that cannot be decoded, and
    per row with a score that is not finite.

    Texts that are dropped, or not of `sources` (empty: of any source), get null, and so do all texts of rows that are False
    in `where` (N,), whose images are not decoded. as_probability: sigmoid(scale x cosine + bias) in place of the cosine.
    """
    rejects: list[Reject] = []
    places = np.arange(rows.num_rows) if where is None else np.flatnonzero(where)
    judged_rows = rows if where is None else rows.filter(pa.array(where))
    images = read_prepared(judged_rows, model.prepare, rejects, ahead)
    vectors = {int(places[at]): one for at, one in encode_images(images, model.images, batch_size, ahead)}
    flat = FlatTexts(rows["texts"])
    judged = flat.still_in(sources) if sources else flat.kept()
    wanted = [i for i in np.flatnonzero(judged).tolist() if int(flat.row[i]) in vectors]
    texts = flat.field("text").take(pa.array(wanted, pa.int64())).to_pylist()
    scores = np.full(len(flat.row), np.nan, np.float32)
    for i, vector in zip(wanted, model.texts(texts, batch_size), strict=True):
        similarity = cosine(vectors[int(flat.row[i])].numpy(), vector)
        scores[i] = probability(similarity, model.scale, model.bias or 0.0) if as_probability else similarity
    rejects += not_finite(rows["id"], (int(flat.row[i]) for i in wanted if not np.isfinite(scores[i])))
    values = flat.nested(pa.array(scores, mask=np.isnan(scores)))
    return Out(without(with_columns(rows, **{column: values}), rejects), rejects)


def compute_made_up(model: Encoders, size: int) -> None:
    """Computes one batch of made-up images and texts, for `vlpipe tune`."""
    model.images(made_up(size, model.side))
    assert len(list(model.texts(["word"] * size, size))) == size
