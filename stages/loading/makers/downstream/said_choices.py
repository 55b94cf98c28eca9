"""Choices that are read with what is said in the video that the question is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlpipe.stages.loading.makers.downstream.choices import Choices
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class SaidChoices(Choices):
    """As `Choices`, of `[CLS] question subtitles [SEP] choice [SEP]`: TVQA's task with subtitles.

    The subtitles are the column `transcript`, a string (`clips.spans` makes it); null: nothing is said. Where a text is too
    long, the end of the subtitles is cut.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("choices", "transcript")

    def asked(self, row: Row, text: str) -> str:
        given = row.columns["transcript"]
        said = given.as_py() if hasattr(given, "as_py") else given
        return f"{text} {said}" if said else text
