"""The text of a sample, with similar texts of other rows as candidates for hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

SIMILAR = "similar"  # key of a note of an item: texts (N,)


@dataclass(frozen=True, kw_only=True)
class NeighbourText(Text):
    """As `Text`; for corruptors, the item notes the texts in the column `neighbours`.

    The column has a list per text of the row, null for a text that is not used, each of structs with a field `text`
    (text_neighbours.neighbours). Raises VlpipeError for a row in which it has not one list per usable text.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("neighbours",)

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        item = super().__call__(row, text, rng)
        assert row is not None
        value: Any = row.columns["neighbours"]
        found = [
            one for one in (value.as_py() if hasattr(value, "as_py") else value) or () if one is not None
        ]
        if len(found) != len(row.texts):
            raise VlpipeError(
                f"neighbour_text: row {row.id} has {len(row.texts)} usable texts, but the column neighbours has "
                f"{len(found)} lists; compute it after the last step that adds or drops texts"
            )
        item[SIMILAR] = np.array([one["text"] for one in found[row.texts.index(text)]], object)
        return item
