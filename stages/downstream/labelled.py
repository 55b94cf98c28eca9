"""Images with sentences of which each has a class: the base of readers of entailment and of statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows
from vlpipe.stages.lists.list import list_files, text_of
from vlpipe.stages.lists.readers import read_rows
from vlpipe.stages.lists.vqa import ANSWERS

Answers = list[dict[str, Any]]  # ANSWERS of a row


class Labelled(NamedTuple):
    """Sentences about an image, the label of each as ANSWERS, and which part of a group the image is."""

    image: str
    sentences: list[str]
    answers: Answers
    part: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledSentences(FolderSource):
    """Base of readers of JSON lines: sentences as `texts` (source human), their labels in the column `answers` (score 1)."""

    NAME: ClassVar[str] = "downstream.labelled:LabelledSentences"
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("answers", ANSWERS),)

    examples: ListFile
    source: str

    def images_with_labels(self) -> Iterable[Labelled]:
        """Yields the images in order of their first sentence."""
        raise NotImplementedError

    def rows(self) -> Iterator[pa.Table]:
        found = [self._limited(one) for one in self.images_with_labels()]
        listed = (Captioned(one.image, one.sentences) for one in found)
        left = iter(found)
        for table in captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit):
            more = [next(left) for _ in range(table.num_rows)]
            yield self.with_more(table, more)

    def _limited(self, one: Labelled) -> Labelled:
        answers = [{**a, "question": self.text_limit.of(a["question"])} for a in one.answers]
        return one._replace(answers=answers)

    def with_more(self, table: pa.Table, more: list[Labelled]) -> pa.Table:
        """Returns the rows with the columns MORE; more: the images of these rows."""
        return table.append_column(self.MORE[0], pa.array([one.answers for one in more], ANSWERS))


def lines_of(path: str, *keys: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place in the file, values of `keys` as texts) of JSON lines. Raises VlpipeError for one that is empty."""
    for file in list_files(path, (".jsonl", ".json")):
        for where, row in read_rows(file, {key: key for key in keys}):
            if isinstance(row, BadLine):
                raise row
            found = {key: text_of(value, where).strip() for key, value in row.items()}
            if empty := [key for key, value in found.items() if not value]:
                raise VlpipeError(f"{where}: {empty[0]!r} is empty")
            yield where, found


def label_of(said: str, classes: tuple[str, ...], where: str) -> int:
    """Returns the place of a class in `classes`. Raises VlpipeError for another one."""
    if said not in classes:
        raise VlpipeError(f"{where}: the label is {said!r}, wanted one of {', '.join(classes)}")
    return classes.index(said)
