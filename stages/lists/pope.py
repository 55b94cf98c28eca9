"""Questions whether an object is in an image, in the JSON of POPE: one row per image with all its questions.

https://github.com/AoiDragon/POPE: a file per kind of negatives (`coco_pope_popular.json`), JSON lines or an array of
{question_id, image, text, label}; text: "Is there a dog in the image?", label: yes or no.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, with_column
from vlpipe.stages.lists.list import list_files, name_in_rows, text_of
from vlpipe.stages.lists.readers import read_rows

QUESTION = pa.struct(
    [
        ("id", pa.string()),  # KIND/QUESTION_ID
        ("kind", pa.string()),
        ("text", pa.string()),
        ("object", pa.string()),  # null: not known
        ("is_there", pa.bool_()),
    ]
)
QUESTIONS = pa.list_(QUESTION)
LABELS = {"yes": True, "no": False}
WANTED = {name: name for name in ("question_id", "image", "text", "label")}


@dataclass(frozen=True, kw_only=True)
class PopeQuestions(FolderSource):
    """Images with questions in the column `questions`; they have no texts.

    questions: a JSON file, or a folder with one per kind of negatives; its name without ending is the kind.
    images: the folder of the file names in it; COCO's val2014 for the published questions. form: the questions' text, {a}
    being "a" or "an", in which {object} is found; null: objects are not looked for.
    """

    questions: ListFile
    form: str | None = "Is there {a} {object} in the image?"
    source: str = "pope"
    named: str = field(init=False, default="")  # the file, whose name the rows have; in the key

    NAME: ClassVar[str] = "lists.pope:PopeQuestions"
    ADDED: ClassVar[frozenset[str]] = frozenset({"named"})
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("questions", QUESTIONS),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", name_in_rows(self.questions.path))

    def preflight(self) -> list[str]:
        if self.form is None or self.form.count("{object}") == 1:
            return []
        return [f"form must have {{object}} once, got {self.form!r}"]

    def rows(self) -> Iterator[pa.Table]:
        questions: dict[str, list[dict[str, Any]]] = {}
        for file in list_files(self.questions.path, (".json", ".jsonl")):
            for name, question in read_questions(file, self.form):
                questions.setdefault(name, []).append(question)
        listed = (Captioned(name, []) for name in questions)
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], questions.values())


def read_questions(file: Path, form: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file name of the image, QUESTION). form: see `PopeQuestions`. Raises VlpipeError with the line of what is
    wrong."""
    pattern = None if form is None else _pattern(form)
    numbers: set[str] = set()
    for where, row in read_rows(file, WANTED):
        if isinstance(row, BadLine):
            raise row
        number, name, text, label = (text_of(row[key], where).strip() for key in WANTED)
        if not name or not text:
            raise VlpipeError(f"{where}: `image` and `text` must not be empty")
        if label.lower() not in LABELS:
            raise VlpipeError(f"{where}: `label` must be yes or no, got {shown(label)}")
        if number in numbers:
            raise VlpipeError(f"{where}: an earlier question has the question_id {shown(number)}")
        numbers.add(number)
        found = None if pattern is None else pattern.fullmatch(text)
        if pattern is not None and found is None:
            raise VlpipeError(
                f"{where}: the text {shown(text)} does not have the form {form!r}; set `form` to that of the questions, or "
                "to null if the object need not be known"
            ).with_settings(("form", "null"))
        yield (
            name,
            {
                "id": f"{file.stem}/{number}",
                "kind": file.stem,
                "text": text,
                "object": None if found is None else found["object"],
                "is_there": LABELS[label.lower()],
            },
        )


def _pattern(form: str) -> re.Pattern[str]:
    """Returns a pattern whose group `object` is what stands in the place of {object}."""
    parts = {"{a}": "an?", "{object}": "(?P<object>.+)"}
    pieces = re.split(r"(\{a\}|\{object\})", form)
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces), re.IGNORECASE)
