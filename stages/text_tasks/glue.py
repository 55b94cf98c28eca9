"""The files of GLUE's tasks: one row per example, with one or two sentences and a class or a score.

Wang et al. 2019, https://arxiv.org/abs/1804.07461; columns of the files of https://gluebenchmark.com.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.common.row import LISTED, ListIds
from vlpipe.stages.lists.list import name_in_rows, text_of
from vlpipe.stages.lists.readers import BATCH_ROWS, read_rows
from vlpipe.stages.lists.text_limit import TextLimit, text_lists

Name = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
EXAMPLES = pa.schema([*LISTED, ("label", pa.int32()), ("score", pa.float32())])


@dataclass(frozen=True)
class Task:
    """Columns of a task's files. classes: their names there, label 0 first; none: scores. header: of files without one."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ("0", "1")
    header: tuple[str, ...] | None = None


ENTAILS = ("entailment", "not_entailment")
TASKS: Mapping[str, Task] = {
    "cola": Task(("sentence",), "label", header=("source", "label", "star", "sentence")),
    "sst2": Task(("sentence",), "label"),
    "mrpc": Task(("#1 String", "#2 String"), "Quality"),
    "qqp": Task(("question1", "question2"), "is_duplicate"),
    "stsb": Task(("sentence1", "sentence2"), "score", ()),
    "mnli": Task(("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction")),
    "qnli": Task(("question", "sentence"), "label", ENTAILS),
    "rte": Task(("sentence1", "sentence2"), "label", ENTAILS),
    "wnli": Task(("sentence1", "sentence2"), "label"),
}


@dataclass(frozen=True, kw_only=True)
class GlueTask(SourceStage):
    """Examples of one task: `texts` (one or two, source human), `label` (int32), or `score` (float32, of stsb alone).

    file: a tsv file of the task, train.tsv or dev.tsv; those of the test sets have no classes. Classes are numbered in the
    order of `TASKS`. A class "-" (MNLI's examples without agreement) is null. Raises VlpipeError with the line for another
    class, and for a sentence that is empty.
    """

    NAME: ClassVar[str] = "text_tasks.glue:GlueTask"
    ADDED: ClassVar[frozenset[str]] = frozenset({"named"})

    file: ListFile
    task: Name
    source: str = "glue"
    text_limit: TextLimit = field(default_factory=TextLimit)
    named: str = field(init=False, default="")  # the file, whose name the rows have; in the key

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", name_in_rows(self.file.path))

    def row_schema(self) -> pa.Schema:
        return EXAMPLES

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return EXAMPLES

    def rows(self) -> Iterator[pa.Table]:
        ids, found = ListIds(self.source), self._examples()
        while batch := list(islice(found, BATCH_ROWS)):
            urls = [f"{Path(self.file.path).name}:{where}" for where, _, _ in batch]
            texts = [texts for _, texts, _ in batch]
            values = [value for _, _, value in batch]
            empty = [None] * len(batch)
            labels, scores = (values, empty) if TASKS[self.task].classes else (empty, values)
            columns = {
                "id": ids.of(urls, ["\n".join(one) for one in texts]),
                "url": urls,
                "texts": text_lists(texts, "human", self.text_limit),
                "label": labels,
                "score": scores,
            }
            yield pa.table(columns, schema=EXAMPLES)

    def _examples(self) -> Iterator[tuple[int, list[str], float | None]]:
        """Yields (number of the example, its sentences, its label or score)."""
        task, path = TASKS[self.task], Path(self.file.path)
        if not path.is_file() or path.suffix.lower() != ".tsv":
            raise VlpipeError(f"file: {path} is not a .tsv file; wanted train.tsv or dev.tsv of {self.task}")
        wanted = {name: name for name in (*task.texts, task.label)}
        for number, (where, row) in enumerate(read_rows(path, wanted, task.header)):
            if isinstance(row, BadLine):
                raise row
            texts = [text_of(row[name], where) for name in task.texts]
            if not all(texts):
                raise VlpipeError(f"{where}: a sentence is empty")
            yield number, texts, self._value(row[task.label], where)

    def _value(self, given: Any, where: str) -> float | None:
        classes, said = TASKS[self.task].classes, str(given).strip()
        if said == "-" and self.task == "mnli":
            return None
        if classes:
            if said not in classes:
                raise VlpipeError(f"{where}: the class is {said!r}, wanted one of {', '.join(classes)}")
            return classes.index(said)
        try:
            score = float(said)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise VlpipeError(f"{where}: the score is {said!r}, wanted a finite number")
        return score

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: Out(rows)
