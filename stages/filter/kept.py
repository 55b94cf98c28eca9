"""Drop images that no filter left a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.row import TEXTS

NO_TEXT_KEPT = "no_text_kept"


@dataclass(frozen=True, kw_only=True)
class KeepMatched(MapStage):
    """Reject (filtered, `no_text_kept`) rows whose texts are all dropped; texts nobody judged count as kept.

    The others keep all their texts, the dropped ones with their reason.
    """

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.kept", id=pa.string(), texts=TEXTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield keep_matched


def keep_matched(table: pa.Table) -> Out:
    keep = [any(t["kept"] is not False for t in texts or ()) for texts in table["texts"].to_pylist()]
    rows = zip(table["id"].to_pylist(), table["texts"].to_pylist(), keep, strict=True)
    rejects = [
        Reject(id_, "filtered", NO_TEXT_KEPT, _reasons(texts)) for id_, texts, kept in rows if not kept
    ]
    return Out(table.filter(pa.array(keep, pa.bool_())), rejects)


def _reasons(texts: list[dict[str, object]] | None) -> str:
    return "; ".join(f"{t['source']}: {t['why']}" for t in texts) if texts else "it has no text"
