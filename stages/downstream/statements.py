"""Statements about two images in the JSON lines of NLVR2. Suhr et al. 2019, https://arxiv.org/abs/1811.00491."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.downstream.labelled import Labelled, LabelledSentences, label_of, lines_of
from vlpipe.stages.lists.vqa import ANSWERS

CLASSES = ("false", "true")
ID, TEXT, LABEL = "identifier", "sentence", "label"
SIDES = (0, 1)  # the left image, the right one
PART = pa.struct(
    [("group", pa.string()), ("number", pa.int8())]
)  # rows of a group belong together, in this order


@dataclass(frozen=True, kw_only=True)
class PairStatements(LabelledSentences):
    """Two rows per statement, its left and its right image, each with the statement as its text.

    `answers` has the label, 1 for true; `part` (PART) the name of the pair and the side, by which `downstream.joined:Joined`
    makes one row of two. examples: JSON lines {identifier, sentence, label}, identifiers such as dev-850-0-1: the split, set
    and pair, and the statement. file_name: of an image below `images`.
    """

    NAME: ClassVar[str] = "downstream.statements:PairStatements"
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("answers", ANSWERS), pa.field("part", PART))

    file_name: str = "{split}-{set}-{pair}-img{side}.png"
    source: str = "nlvr2"

    def images_with_labels(self) -> Iterable[Labelled]:
        for where, one in lines_of(self.examples.path, ID, TEXT, LABEL):
            parts = one[ID].rsplit("-", 3)
            if len(parts) != 4:
                raise VlpipeError(f"{where}: wanted an identifier such as dev-850-0-1, got {one[ID]!r}")
            label = label_of(one[LABEL].lower(), CLASSES, where)
            names = dict(zip(("split", "set", "pair"), parts, strict=False))
            answer: dict[str, Any] = {"question": one[TEXT], "label": label, "score": 1.0}
            for side in SIDES:
                image = self.file_name.format(side=side, **names)
                yield Labelled(image, [one[TEXT]], [answer], {"group": one[ID], "number": side})

    def with_more(self, table: pa.Table, more: list[Labelled]) -> pa.Table:
        found = super().with_more(table, more)
        return found.append_column(self.MORE[1], pa.array([one.part for one in more], PART))
