"""The perfect filter: decides each text by the demo world's ground truth, in the columns of CapFilt's filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts, to_mask
from vlpipe.stages.filter.at_random import AT_RANDOM, redecided
from vlpipe.stages.filter.itm import NOT_MATCHED
from vlpipe.stages.ground_truth.filter import is_right, read_truth, truth_of

WRONG = "wrong"
REPLACED = (NOT_MATCHED, AT_RANDOM, WRONG)  # codes of other filters of CapFilt, and of this one


@dataclass(frozen=True, kw_only=True)
class TruthFilter(MapStage):
    """Keeps the texts of `sources` that are correct for their image, drops the others with the code `wrong`.

    Replaces the decisions of `filter.itm` and `filter.at_random`, and removes the scores; texts dropped for another reason
    stay dropped. truth: the demo world's truth.parquet, which has a label for each web text; `demo.check_text` judges
    synthetic ones. Rows of another world are an error.
    """

    NAME: ClassVar[str] = "ground_truth.decide:TruthFilter"

    truth: File
    sources: tuple[str, ...] = ("web", "synth")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "ground_truth.decide", id=pa.string(), url=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field("texts", TEXTS))  # no encoder: there are no scores

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = read_truth(self.truth)

        def work(rows: pa.Table) -> pa.Table:
            texts, urls = FlatTexts(rows["texts"]), rows["url"].to_pylist()
            replaced = to_mask(pc.is_in(texts.field("why"), pa.array(REPLACED)))
            ours = to_mask(pc.is_in(texts.field("source"), pa.array(self.sources, pa.string())))
            mine = ours & (texts.kept() | replaced)
            keep = np.zeros(len(mine), np.bool_)
            for at in np.flatnonzero(mine).tolist():
                truth = truth_of(urls[texts.row[at]], known)
                keep[at] = is_right(texts.entries[at].as_py(), truth)
            return redecided(rows, texts, mine, keep, WRONG)

        yield work
