"""Reads texts and their scores for the report, with counts per source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.report.html import count, esc, number_table, share
from vlpipe.stages.report.view import RunView, StepView

MAX_ROWS = 200_000  # approximate max number of rows read, from evenly spaced shards of the step


@dataclass(frozen=True, slots=True)
class Scores:
    """The scored texts of one source. kept: 1 yes, 0 no, -1 not judged."""

    source: str
    values: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts read from a step: per source the numbers of all, kept and dropped texts; and the scores."""

    step: str
    num_rows: int
    sources: tuple[tuple[str, int, int, int], ...]  # source, texts, kept, dropped
    scores: tuple[Scores, ...]

    @property
    def num_scored(self) -> int:
        return sum(len(s.values) for s in self.scores)


def has_texts(step: StepView) -> bool:
    data = step.dataset
    return data is not None and data.num_rows > 0 and "texts" in data.schema.names and _type(data) == TEXTS


def _type(data: Dataset) -> pa.DataType:
    return data.schema.field("texts").type


def spread(data: Dataset, max_shards: int) -> Dataset:
    """Returns the dataset with at most `max_shards` shards, evenly spaced, including the first."""
    at = np.unique(
        np.rint(np.linspace(0, len(data.shards) - 1, min(max_shards, len(data.shards)))).astype(int)
    )
    return replace(data, shards=tuple(data.shards[k] for k in at))


def judged_texts(run: RunView) -> Texts | None:
    """Returns the texts of the step with the most scored texts (ties: the last step); None if no step has texts.

    The last step would have fewer, because steps drop rows.
    """
    best: Texts | None = None
    for step in (s for s in run.steps if has_texts(s)):
        found = read_texts(step)
        if best is None or found.num_scored >= best.num_scored:
            best = found
    return best


def read_texts(step: StepView) -> Texts:
    """Returns the texts of a step: all, or those of evenly spaced shards with about MAX_ROWS rows if it has more."""
    assert step.dataset is not None
    data = step.dataset
    num_shards = max(1, MAX_ROWS * len(data.shards) // max(MAX_ROWS, data.num_rows))
    some = spread(data, num_shards)
    flat = [_flatten(batch["texts"]) for batch in some.batches(["texts"])]
    table = pa.concat_tables([*flat, _FLAT.empty_table()])
    return Texts(step.name, some.num_rows, tuple(_sources(table)), tuple(_scores(table)))


_FLAT = pa.schema([("source", pa.string()), ("score", pa.float32()), ("kept", pa.int8())])


def _flatten(texts: pa.ChunkedArray) -> pa.Table:
    each = pc.list_flatten(texts)
    source, score, kept = (pc.struct_field(each, name) for name in ("source", "score", "kept"))
    kept = pc.fill_null(pc.cast(kept, pa.int8()), -1)
    return pa.table([pc.fill_null(source, "unknown"), score, kept], schema=_FLAT)


def _sources(table: pa.Table) -> Iterator[tuple[str, int, int, int]]:
    for source in _in_order(table):
        kept = np.asarray(table.filter(pc.equal(table["source"], source))["kept"])
        yield source, len(kept), int((kept == 1).sum()), int((kept == 0).sum())


def _in_order(table: pa.Table) -> list[str]:
    """Returns the sources that occur: web, synth, human, then others in alphabetical order."""
    known = ["web", "synth", "human"]
    present = set(table["source"].to_pylist())
    return [s for s in known if s in present] + sorted(present.difference(known))


def _scores(table: pa.Table) -> Iterator[Scores]:
    scored = table.filter(pc.is_finite(pc.fill_null(table["score"], float("nan"))))
    for source in _in_order(scored):
        of_source = scored.filter(pc.equal(scored["source"], source))
        yield Scores(
            source, np.asarray(of_source["score"], np.float32), np.asarray(of_source["kept"], np.int8)
        )


def text_table(texts: Texts) -> str:
    rows = "".join(_source_row(*one) for one in texts.sources)
    return number_table(("texts", "kept", "dropped", "not judged", "kept of judged"), rows)


def _source_row(source: str, num: int, kept: int, dropped: int) -> str:
    judged = kept + dropped
    cells = [*(count(n) for n in (num, kept, dropped, num - judged)), share(kept, judged) if judged else ""]
    name = f'<td><span class="source {esc(source)}">{esc(source)}</span></td>'
    numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    return f"<tr>{name}{numbers}</tr>"
