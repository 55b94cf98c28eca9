"""Chooses, image by image, whether its web texts, its synthetic texts or both are used.

Neither kind is best alone: captioners lose names and places that alt-text has (CapsFusion, https://arxiv.org/abs/2310.20550),
and alt-text says little of the image (Lai et al., https://arxiv.org/abs/2410.02740, mix both).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.shard import Out, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import draws
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts, Mask, to_mask
from vlpipe.stages.selection.text_scores import check_scores, scores_of

OTHER_BETTER, NOT_DRAWN = "other_source_better", "source_not_drawn"
BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class BetterSource(MapStage):
    """Keeps of each image the texts of the source whose best text has the highest score, and drops those of the others.

    Sources whose best score is at most `margin` below it stay as well: both are used where neither is clearly better.
    column, encoder: as in `selection.best`. A source without a score loses to one with a score; without any, all stay.
    Dropped texts have the code `other_source_better`. Counts: rows by the sources that stay, such as `chose:web+synth`.
    """

    NAME: ClassVar[str] = "selection.choose:BetterSource"

    column: str
    encoder: str = ""
    margin: Annotated[float, Field(ge=0)] = 0.0
    sources: tuple[str, ...] = ("web", "synth")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.choose", id=pa.string(), texts=TEXTS)
        check_scores(inp, self.column, self.encoder, "selection.choose")
        return inp

    def preflight(self) -> list[str]:
        return source_problems(self.sources)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._choose

    def _choose(self, rows: pa.Table) -> Out:
        texts = FlatTexts(rows["texts"])
        scores = scores_of(rows, texts, self.column)
        best = np.full((rows.num_rows, len(self.sources)), -np.inf)
        there = np.zeros(best.shape, np.bool_)
        for number, source in enumerate(self.sources):
            ours = texts.still_in([source])
            there[texts.row[ours], number] = True
            scored = ours & ~np.isnan(scores)
            np.maximum.at(best[:, number], texts.row[scored], scores[scored])
        highest = best.max(1, keepdims=True, initial=-np.inf)
        stays = there & ((best >= highest - self.margin) | np.isneginf(highest))
        return chosen(rows, texts, self.sources, there, stays, OTHER_BETTER)


@dataclass(frozen=True, kw_only=True)
class DrawSource(MapStage):
    """Draws for each image which of its texts stay: `shares: {web: 0.3, synth: 0.5, both: 0.2}`, relative to their sum.

    An image that has texts of one source alone keeps them. Dropped texts have the code `source_not_drawn`. A draw depends
    only on (seed, row id). Counts: rows by the sources that stay, such as `chose:web`.
    """

    NAME: ClassVar[str] = "selection.choose:DrawSource"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"shares"})

    shares: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.choose", id=pa.string(), texts=TEXTS)
        return inp

    @property
    def _sources(self) -> tuple[str, ...]:
        return tuple(name for name in self.shares if name != BOTH)

    def preflight(self) -> list[str]:
        problems = source_problems(self._sources)
        return problems if sum(self.shares.values()) > 0 else [*problems, "shares: every share is 0"]

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._draw

    def _draw(self, rows: pa.Table) -> Out:
        texts = FlatTexts(rows["texts"])
        there = np.zeros((rows.num_rows, len(self._sources)), np.bool_)
        for number, source in enumerate(self._sources):
            there[texts.row[texts.still_in([source])], number] = True
        ends = np.cumsum(list(self.shares.values())) / sum(self.shares.values())
        uniform = (draws(self.seed, rows["id"].to_pylist()) >> np.uint64(11)) / 2**53
        drawn = np.minimum(np.searchsorted(ends, uniform, side="right"), len(ends) - 1)
        names = np.array(list(self.shares), object)[drawn]
        wants = np.array([[name in (BOTH, source) for source in self._sources] for name in names], np.bool_)
        wants = wants.reshape(there.shape)
        is_one = there.sum(1, keepdims=True) < 2
        return chosen(rows, texts, self._sources, there, there & (wants | is_one), NOT_DRAWN)


def source_problems(sources: Sequence[str]) -> list[str]:
    """Returns error texts for `preflight`; empty if there are at least two different sources."""
    is_fine = len(sources) > 1 and len(set(sources)) == len(sources)
    return [] if is_fine else [f"wanted two or more different sources, got {', '.join(sources) or 'none'}"]


def chosen(
    rows: pa.Table, texts: FlatTexts, sources: Sequence[str], there: Mask, stays: Mask, why: str
) -> Out:
    """Returns `rows` in which texts of sources that do not stay are dropped with the code `why`.

    there, stays: (N, number of sources), whether a row has texts of the source, and whether these stay.
    """
    dropped = np.zeros(len(texts.row), np.bool_)
    for number, source in enumerate(sources):
        ours: npt.NDArray[np.bool_] = to_mask(pc.equal(texts.field("source"), source)) & texts.kept()
        dropped |= ours & ~stays[texts.row, number]
    codes = pc.if_else(pa.array(dropped), why, pa.scalar(None, pa.string()))
    return Out(texts.drop(rows, codes), counts=_counts(sources, stays[there.any(1)]))


def _counts(sources: Sequence[str], stays: Mask) -> dict[str, int]:
    kinds, numbers = np.unique(stays, axis=0, return_counts=True)
    named = ("+".join(s for s, is_in in zip(sources, kind, strict=True) if is_in) for kind in kinds.tolist())
    return {f"chose:{name}": number for name, number in zip(named, numbers.tolist(), strict=True)}
