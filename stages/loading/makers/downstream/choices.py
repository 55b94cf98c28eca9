"""The texts of which one is the right answer to the question that a sample's text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.answer import as_dicts
from vlpipe.stages.loading.makers.base import EXTRA, IGNORE, ROW, TARGET, Item, note
from vlpipe.stages.loading.makers.text import TokenIds
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

# question: one of the row's texts. label: the place of the right choice, null if it is not known. task: such as "answer" or
# "rationale"; questions of several tasks that belong together have the same name.
CHOICES = pa.list_(
    pa.struct(
        [
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("label", pa.int32()),
            ("name", pa.string()),
            ("task", pa.string()),
        ]
    )
)


@dataclass(frozen=True, kw_only=True)
class Choices(TokenIds):
    """Token ids (B, K, L) of `[CLS] question [SEP] choice [SEP]` for each choice; extra["segment"]: 1 in the choice, else 0.

    The text of a sample is a question of the column `choices` (CHOICES); target["label"] (B,) is the place of the right one,
    IGNORE if it is null. Where rows differ in the number of choices, missing ones have no real position. Of a pair that is
    too long, tokens are taken off the end of the longer part. Raises VlpipeError for a text without choices.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("choices",)
    MIN_LENGTH: ClassVar[int] = 5

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        one = question_of(row, text)
        asked = self.asked(row, text)
        pairs = [self.tokenizer.encode_pair(asked, choice, self.length) for choice in one["choices"]]
        longest = max(len(ids) for ids, _, _ in pairs)
        data = np.full((len(pairs), longest), int(self.fill), np.int64)
        mask, segment = np.zeros((len(pairs), longest), np.bool_), np.zeros((len(pairs), longest), np.int64)
        for k, (ids, _, segments) in enumerate(pairs):
            data[k, : len(ids)], segment[k, : len(ids)], mask[k, : len(ids)] = ids, segments, True
        label = IGNORE if one["label"] is None else one["label"]
        found: Item = {"data": data, "mask": mask, f"{EXTRA}segment": segment}
        return {**found, f"{TARGET}label": np.int64(label), ROW: note(row.image_id)}

    def asked(self, row: Row, text: str) -> str:
        """Returns what stands before each choice."""
        return text

    def num_positions(self, row: Row, text: str) -> float:
        return float(self(row, text, np.random.default_rng(0))["data"].size)

    def collate(self, items: Sequence[Item]) -> Stream:
        import torch

        from vlpipe.models.interface.batch import Stream

        shape = tuple(max(item["data"].shape[axis] for item in items) for axis in (0, 1))

        def padded(key: str, fill: Any) -> Any:
            out = np.full((len(items), *shape), fill, items[0][key].dtype)
            for k, item in enumerate(items):
                several, length = item[key].shape
                out[k, :several, :length] = item[key]
            return torch.from_numpy(out)

        labels = torch.tensor([int(item[f"{TARGET}label"]) for item in items])
        extra = {"segment": padded(f"{EXTRA}segment", 0)}
        return Stream(padded("data", int(self.fill)), padded("mask", False), extra, {"label": labels})


def question_of(row: Row, text: str) -> dict[str, Any]:
    """Returns the entry of the column `choices` whose question is `text`. Raises VlpipeError if there is none."""
    one = next((q for q in as_dicts(row.columns["choices"]) if q["question"] == text), None)
    if one is None or not one["choices"]:
        raise VlpipeError(f"row {row.id}: the column `choices` has no choices for {text!r}")
    if one["label"] is not None and not 0 <= one["label"] < len(one["choices"]):
        raise VlpipeError(
            f"row {row.id}: label {one['label']} of {text!r} is not the place of one of {len(one['choices'])} choices"
        )
    return one
