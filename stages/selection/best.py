"""Best of n: of the texts of an image, those with the highest score of a judge stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import Out, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts, Mask
from vlpipe.stages.selection.text_scores import check_scores, scores_of

NOT_BEST, NO_SCORE = "not_best", "no_score"


@dataclass(frozen=True, kw_only=True)
class BestOfN(MapStage):
    """Keeps, of each image's texts of `sources`, the `num` with the highest score; the others are dropped (`not_best`).

    column: scores, a list with one number per text, or `texts.score`. encoder: that of the column, as in rules. per:
    `image`, one choice among all; `source` or `model`, one among the texts of each source, or of each captioner. Of equal
    scores the earlier text stays. A text without a score is dropped (`no_score`). Dropped texts do not count.
    Counts: `kept`, `drops:not_best`, `drops:no_score`.
    """

    NAME: ClassVar[str] = "selection.best:BestOfN"

    column: str
    encoder: str = ""
    num: Annotated[int, Field(ge=1)] = 1
    sources: tuple[str, ...] = ("synth",)
    per: Literal["image", "source", "model"] = "image"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.best", id=pa.string(), texts=TEXTS)
        check_scores(inp, self.column, self.encoder, "selection.best")
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._choose

    def _choose(self, rows: pa.Table) -> Out:
        texts = FlatTexts(rows["texts"])
        ours = texts.still_in(self.sources)
        scores = scores_of(rows, texts, self.column)
        groups = texts.row if self.per == "image" else _grouped(texts, self.per)
        best = ours & is_among_best(groups, scores, ours & ~np.isnan(scores), self.num)
        unscored = ours & np.isnan(scores)
        dropped = ours & ~best & ~unscored
        why = np.full(len(ours), None, object)
        why[unscored], why[dropped] = NO_SCORE, NOT_BEST
        counts = {
            "kept": int(best.sum()),
            f"drops:{NOT_BEST}": int(dropped.sum()),
            f"drops:{NO_SCORE}": int(unscored.sum()),
        }
        return Out(texts.drop(rows, pa.array(why, pa.string())), counts=counts)


def _grouped(texts: FlatTexts, field: str) -> npt.NDArray[np.int64]:
    """Returns a number per text, (M,): equal for texts of one row with the same value of the field."""
    values = texts.field(field).to_pylist()
    numbers: dict[tuple[int, str | None], int] = {}
    pairs = zip(texts.row.tolist(), values, strict=True)
    return np.array([numbers.setdefault(pair, len(numbers)) for pair in pairs], np.int64)


def is_among_best(
    groups: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], candidates: Mask, num: int
) -> Mask:
    """Returns a mask (M,): True for the `num` candidates of each group with the highest scores, earlier ones first."""
    at = np.flatnonzero(candidates)
    order = at[np.lexsort((at, -scores[at], groups[at]))]
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    found = np.zeros(len(groups), np.bool_)
    found[order[rank < num]] = True
    return found
