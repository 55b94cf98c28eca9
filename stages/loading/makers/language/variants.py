"""Further texts of a sample: true and false rewrites of its text, and similar texts of other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.text import TokenIds
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream


class _Columns:
    """Of the class, the columns that every such maker reads; of a maker, its own ones, too."""

    def __get__(self, maker: Variants | None, cls: type[Variants]) -> tuple[str, ...]:
        return ("texts",) if maker is None else ("texts", *maker.positives, *maker.negatives)


@dataclass(frozen=True, kw_only=True)
class Variants(TokenIds):
    """Token ids (B, K, L) of K texts of each sample, from columns that have a list of entries for each text of the row.

    own: whether the sample's text comes first. positives, negatives: column -> how many entries of it: texts, or structs
    with a field `text`, such as {rewrites: 3} of `scene_graphs.rewrites`. extra: `tokens` (B, K, L) bool, no padding;
    `there` (B, K) bool, false where a text has fewer entries; `positive` (B, K) bool.
    """

    COLUMNS = _Columns()
    PADDED: ClassVar[bool] = False
    MIN_LENGTH: ClassVar[int] = 3

    own: bool = True
    positives: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [*self.positives.values(), *self.negatives.values()]
        if self.own + sum(numbers) < 1 or any(num < 1 for num in numbers):
            raise ValueError(
                f"variants: wanted at least one text of each column, got {self.positives}, {self.negatives}"
            )

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        texts: list[str | None] = [text] if self.own else []
        positive = [True] * len(texts)
        for columns, is_true in ((self.positives, True), (self.negatives, False)):
            for name, num in sorted(columns.items()):  # keys are sorted, too
                found = entries_of(row, text, name)
                order = rng.permutation(len(found))[:num]
                texts += [found[int(k)] for k in order] + [None] * (num - len(order))
                positive += [is_true] * num
        ids = [self.tokenizer.encode_one(one, self.length)[0] if one else [] for one in texts]
        data = np.full((len(ids), self.length), self.tokenizer.pad, np.int64)
        for k, one in enumerate(ids):
            data[k, : len(one)] = one
        tokens = np.arange(self.length)[None] < np.array([len(one) for one in ids])[:, None]
        there = np.array([one is not None for one in texts])
        return {
            "data": data,
            f"{EXTRA}tokens": tokens,
            f"{EXTRA}there": there,
            f"{EXTRA}positive": np.array(positive),
        }

    def collate(self, items: Sequence[Item]) -> Stream:
        longest = max(1, max(int(item[f"{EXTRA}tokens"].sum(1).max()) for item in items))
        cut = [
            {**one, "data": one["data"][:, :longest], f"{EXTRA}tokens": one[f"{EXTRA}tokens"][:, :longest]}
            for one in items
        ]
        import torch

        extra = {
            name: torch.from_numpy(np.stack([one[f"{EXTRA}{name}"] for one in cut]))
            for name in ("tokens", "there", "positive")
        }
        return replace(super().collate([{"data": one["data"]} for one in cut]), extra=extra)


def entries_of(row: Row, text: str, column: str) -> list[str]:
    """Returns the texts that a column has for one of a row's texts. Raises VlpipeError if it has none for it."""
    texts, entries = (row.columns[name].as_py() or [] for name in ("texts", column))
    if len(texts) != len(entries):
        raise VlpipeError(
            f"variants: row {row.id} has {len(texts)} texts and {len(entries)} values of {column!r}; compute it in a step "
            "after the last one that adds texts"
        )
    found: Any = next((some for one, some in zip(texts, entries, strict=True) if one["text"] == text), None)
    return [one["text"] if isinstance(one, dict) else one for one in found or ()]
