"""A caption and the words of an image's object tags as one sequence of token ids: Oscar's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import ROW, Item, note
from vlpipe.stages.loading.makers.text import CHARACTERS
from vlpipe.stages.loading.makers.text_pair import TextPair
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class CaptionAndTags(TextPair):
    """Token ids (B, L) of `[CLS] caption [SEP] tags [SEP]`; see `TextPair`. A row's tags are its column `region_tags`.

    max_tags: the first, which are the detector's surest. distinct: each word of a row's tags once. Raises VlpipeError for a
    row whose tags are null; a row without any has an empty second text.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("region_tags",)

    max_tags: Annotated[int, Field(ge=1)] | None = None
    distinct: bool = False

    def num_positions(self, row: Row, text: str) -> float:
        return min(self.length, (len(text) + len(self.tags(row))) / CHARACTERS)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        return {**self.encoded(text, self.tags(row)), ROW: note(row.image_id)}

    def tags(self, row: Row) -> str:
        """Returns the words of a row's tags."""
        found = row.columns["region_tags"]
        found = found.as_py() if hasattr(found, "as_py") else found
        if found is None:
            raise VlpipeError(
                f"tags: row {row.id} has null region_tags; add a step before training that rejects it"
            )
        kept = list(dict.fromkeys(found)) if self.distinct else list(found)
        return " ".join(kept[: self.max_tags])
