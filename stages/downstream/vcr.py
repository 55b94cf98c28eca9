"""Questions with four answers and four rationales in the JSON lines of VCR.

Zellers et al. 2019, https://arxiv.org/abs/1811.10830.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted
from vlpipe.stages.lists.json_values import whole_number
from vlpipe.stages.lists.list import list_files, text_of
from vlpipe.stages.lists.readers import read_rows
from vlpipe.stages.loading.makers.downstream.choices import CHOICES

ANSWER, RATIONALE = "answer", "rationale"
TASKS = (ANSWER, RATIONALE)
LISTS = tuple(f"{task}_{key}" for task in TASKS for key in ("choices", "label"))
KEYS = ("annot_id", "img_fn", "objects", "question", *LISTS)
Questions = list[dict[str, Any]]  # CHOICES of a row


@dataclass(frozen=True, kw_only=True)
class VcrQuestions(FolderSource):
    """One row per image: its questions as `texts`, and in `choices` (CHOICES) the answers to each and the rationales.

    Of each annotation, a question of task "answer" (Q->A) and one of task "rationale" (QA->R), whose text is the question
    and its right answer. An object that is pointed at becomes its name and number, from 1: "person 2". examples: JSON
    lines of train or val, which have labels. A question that is asked of an image again, word for word, is left out.
    """

    NAME: ClassVar[str] = "downstream.vcr:VcrQuestions"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("choices", CHOICES),)

    examples: ListFile
    source: str = "vcr"

    def rows(self) -> Iterator[pa.Table]:
        images: dict[str, dict[str, dict[str, Any]]] = {}
        for where, line in _lines(self.examples.path):
            for one in questions_of(line, where):
                image = text_of(line["img_fn"], where)
                one["question"] = self.text_limit.of(one["question"])
                images.setdefault(image, {}).setdefault(one["question"], one)
        listed = (Captioned(name, list(asked)) for name, asked in images.items())
        left = iter(images.values())
        for table in captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit):
            column = pa.array([list(next(left).values()) for _ in range(table.num_rows)], CHOICES)
            yield table.append_column(self.MORE[0], column)


def questions_of(line: Mapping[str, Any], where: str) -> Questions:
    """Returns the two questions of an annotation as entries of CHOICES. Raises VlpipeError for what is wrong in it."""
    try:
        names = [text_of(name, f"{where}: objects") for name in wanted(line, "objects", list, where)]
        asked = spoken(line["question"], names)
        name = text_of(line["annot_id"], f"{where}: annot_id")
        found, right = [], asked
        for task in TASKS:
            choices = [spoken(one, names) for one in wanted(line, f"{task}_choices", list, where)]
            label = whole_number(line, f"{task}_label", where)
            if not 0 <= label < len(choices) or not all(choices):
                raise VlpipeError(
                    f"{where}: {task}_label is {label}, wanted the place of one of {len(choices)} texts that are not empty"
                )
            found.append(
                {
                    "question": right,
                    "choices": choices,
                    "label": label,
                    "name": name,
                    "task": task,
                }
            )
            right = f"{asked} {choices[label]}"
    except ValueError as error:
        raise VlpipeError(f"{where}: wanted an annotation of VCR with labels; {error}") from error
    if not name or not asked:
        raise VlpipeError(f"{where}: the {'question' if name else 'annot_id'} is empty")
    return found


def spoken(tokens: Any, names: list[str]) -> str:
    """Returns tokens as a text; a list of places of objects becomes their names and numbers: "person 1 and dog 2".

    Raises ValueError for anything else.
    """
    if not isinstance(tokens, list):
        raise ValueError(f"a text is {shown(tokens)}, wanted a list of words and lists of places of objects")
    words = []
    for token in tokens:
        places = (
            [whole_number({"place": k}, "place", shown(token)) for k in token]
            if isinstance(token, list)
            else []
        )
        if not isinstance(token, (str, list)) or any(not 0 <= k < len(names) for k in places):
            raise ValueError(f"{shown(token)} is no word and no list of places of {len(names)} objects")
        pointed = (
            [f"{names[k]} {k + 1}" for k in places] if isinstance(token, list) else [text_of(token, "a word")]
        )
        words.append(" and ".join(pointed))
    return " ".join(" ".join(words).split())


def _lines(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in list_files(path, (".jsonl", ".json")):
        for where, row in read_rows(file, {key: key for key in KEYS}):
            if isinstance(row, BadLine):
                raise row
            yield where, row
