"""Drops images without a kept text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts

NO_TEXT_KEPT = "no_text_kept"


@dataclass(frozen=True, kw_only=True)
class KeepMatched(MapStage):
    """Rejects rows (filtered, `no_text_kept`) whose texts are all dropped; texts without a decision count as kept.

    Other rows keep all their texts, including the dropped ones with their reason.
    """

    NAME: ClassVar[str] = "filter.kept:KeepMatched"
    FILTERS: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.keep_matched", id=pa.string(), texts=TEXTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield keep_matched


def keep_matched(table: pa.Table, tell: Callable[[int, str], str] = lambda at, why: "") -> Out:
    """Returns the rows with a kept text, and a reject (`no_text_kept`) for each other row.

    tell(i, why): returns the detail that a reject shows for one text; i is the text's index among all texts of the table,
    why the code for which it was dropped.
    """
    texts = FlatTexts(table["texts"])
    keep = np.zeros(table.num_rows, np.bool_)
    keep[texts.row[texts.kept()]] = True
    dropped = table.select(["id", "texts"]).filter(pa.array(~keep)).to_pylist()
    starts = (np.cumsum(texts.lengths) - texts.lengths)[~keep].tolist()
    rejects = [
        Reject(row["id"], "filtered", NO_TEXT_KEPT, _reasons(row["texts"], start, tell))
        for row, start in zip(dropped, starts, strict=True)
    ]
    return Out(table.filter(pa.array(keep)) if dropped else table, rejects)


def _reasons(texts: list[dict[str, str]] | None, start: int, tell: Callable[[int, str], str]) -> str:
    """Returns the detail of a row's reject: `web: seen_often (text_count 15, wanted <= 10)` for each text, joined by `; `.

    texts: of the row. start: index of the first one among all texts of the table, for `tell`.
    """
    if not texts:
        return "it has no text"
    details = [tell(at, text["why"]) for at, text in enumerate(texts, start)]
    both = zip(texts, details, strict=True)
    return "; ".join(f"{t['source']}: {t['why']}" + (f" ({detail})" if detail else "") for t, detail in both)
