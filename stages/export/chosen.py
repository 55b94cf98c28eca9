"""Which of a row's texts an export writes, and which of its columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from vlpipe.pipeline.shard import is_heavy

Which = Literal["best", "all", "first"]
Source = Literal["web", "synth", "human"]


def chosen_texts(
    texts: Sequence[Mapping[str, Any]], which: Which, sources: Collection[str] | None = None
) -> list[Mapping[str, Any]]:
    """Returns the entries of `texts` to write: kept ones that are not empty, in their order.

    which: `first`; `best` (highest score; ties: the first; texts without a score come last); or `all`. sources: only texts
    of these; None: all.
    """
    usable = [
        one
        for one in texts
        if one["kept"] is not False
        and (one["text"] or "").strip()
        and (sources is None or one["source"] in sources)
    ]
    if which == "best" and usable:
        return [max(usable, key=_score)]  # ties: the first
    return usable[:1] if which == "first" else usable


def _score(one: Mapping[str, Any]) -> float:
    score = one["score"]
    return -math.inf if score is None or math.isnan(score) else float(score)


def is_plain(f: pa.Field) -> bool:
    """Returns True for a light column with one number, boolean or string per row."""
    numbers = pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_boolean(f.type)
    return not is_heavy(f) and (numbers or pa.types.is_string(f.type))
