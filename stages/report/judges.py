"""What judges say of the texts: quantiles of each judge's scores by source, from which thresholds are chosen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.judging.column import SCORES
from vlpipe.stages.report.html import count, esc, number_table, share
from vlpipe.stages.report.texts import MAX_ROWS, has_texts, spread
from vlpipe.stages.report.view import RunView

QUANTILES = (0.05, 0.3, 0.5, 0.7, 0.95)


def columns_of_judges(schema: pa.Schema) -> list[str]:
    """Returns the columns with one score per text that record their encoder."""
    return [f.name for f in schema if f.type == SCORES and encoder_of(schema, f.name)]


def judges(run: RunView) -> str:
    """Returns a table of the last step with judges' scores: a line per judge and source; "" if there is no such step.

    Of a step with more than MAX_ROWS rows, evenly spaced shards are read.
    """
    for step in reversed(run.steps):
        if has_texts(step) and step.dataset is not None and (names := columns_of_judges(step.dataset.schema)):
            num_shards = max(1, MAX_ROWS * len(step.dataset.shards) // max(MAX_ROWS, step.dataset.num_rows))
            data = spread(step.dataset, num_shards)
            rows = "".join(line for name in names for line in _lines(data, name))
            heads = ("judge", "scored", "kept", *(f"{q:.0%} below" for q in QUANTILES))
            about = f'<p class="note">scores of texts of {count(data.num_rows)} rows of <b>{esc(step.name)}</b></p>'
            return about + number_table(heads, rows) if rows else ""
    return ""


def _lines(data: Dataset, name: str) -> Iterator[str]:
    judge = encoder_of(data.schema, name)
    scores: dict[str, list[np.ndarray]] = {}
    num_kept: dict[str, int] = {}
    for rows in data.batches(["texts", name]):
        texts = FlatTexts(rows["texts"])
        values = np.asarray(
            pc.fill_null(texts.aligned(name, rows[name]), np.nan).to_numpy(zero_copy_only=False), np.float32
        )
        sources = np.asarray(texts.field("source").to_pylist(), object)
        for source in dict.fromkeys(sources.tolist()):
            ours = (sources == source) & ~np.isnan(values)
            scores.setdefault(source or "unknown", []).append(values[ours])
            num_kept[source or "unknown"] = num_kept.get(source or "unknown", 0) + int(
                (ours & texts.kept()).sum()
            )
    for source, parts in scores.items():
        found = np.concatenate(parts)
        if len(found):
            cells = [count(len(found)), share(num_kept[source], len(found))]
            cells += [f"{value:.4g}" for value in np.quantile(found, QUANTILES)]
            numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
            label = f'<td>{esc(name)} <span class="source {esc(source)}">{esc(source)}</span></td>'
            yield f'<tr>{label}<td class="num">{esc(judge)}</td>{numbers}</tr>'
