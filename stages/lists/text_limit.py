"""The maximum length of a text, and the column `texts` of listed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import ConfigDict, Field

from vlpipe.stages.common.row import TEXT, TEXTS

TOO_LONG = "too_long"


@dataclass(frozen=True, kw_only=True)
class TextLimit:
    """max_chars: maximum length of a text, in Unicode code points. longer: `drop` keeps the first `max_chars` characters
    of a longer text, with kept=False and why='too_long', so that no step uses it; `cut` uses them as the text."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_chars: Annotated[int, Field(ge=1)] = 100_000
    longer: Literal["drop", "cut"] = "drop"

    def of(self, text: str) -> str:
        """Returns a text as the column `texts` has it, for other columns that name it."""
        return text[: self.max_chars]


def text_lists(values: Sequence[Sequence[str]], source: str, limit: TextLimit) -> pa.ListArray:
    """Returns the column `texts`, in which row i has the texts values[i]. 4 times as fast as from dicts."""
    flat = [text for texts in values for text in texts]
    too_long = [len(text) > limit.max_chars for text in flat]
    columns = {f.name: pa.nulls(len(flat), f.type) for f in TEXT}
    columns |= {
        "text": pa.array([limit.of(text) for text in flat], pa.string()),
        "source": pa.array([source] * len(flat), pa.string()),
    }
    if limit.longer == "drop" and any(too_long):
        columns["kept"] = pa.array([False if long else None for long in too_long], pa.bool_())
        columns["why"] = pa.array([TOO_LONG if long else None for long in too_long], pa.string())
    entries = pa.StructArray.from_arrays(list(columns.values()), fields=list(TEXT))
    offsets = pa.array([*accumulate(map(len, values), initial=0)], pa.int32())
    return pa.ListArray.from_arrays(offsets, entries, type=TEXTS)
