"""TVQA's lines: a question about a clip of a TV show, five answers, and the times between which it is answered.

Lei et al. 2018, https://arxiv.org/abs/1809.01696; tvqa_train.jsonl: {qid, q, a0, ..., a4, answer_idx, vid_name, ts}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File
from vlpipe.pipeline.storage.text_lines import BadLine, text_lines
from vlpipe.stages.lists.json_values import array_items, parse_json, whole_number
from vlpipe.stages.lists.list import list_files, text_of

NUM_CHOICES = 5
TEXTS = ("qid", "q", "vid_name", *(f"a{k}" for k in range(NUM_CHOICES)))
TIMES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*")
NO_TIMES = "nan-nan"  # some lines of the published files have it


class TvqaLine(NamedTuple):
    """label: the place of the right choice, None if it is not told, as in the test set. times: `ts`, as it stands."""

    name: str
    video: str
    question: str
    choices: list[str]
    label: int | None
    times: Any
    where: str

    def span(self) -> tuple[float, float] | None:
        """Returns start and end in seconds; None for a line without times, or whose times are no numbers.

        Raises VlpipeError for other values, and for an end that is not after its start.
        """
        if self.times is None or str(self.times).strip().lower() == NO_TIMES:
            return None
        found = TIMES.fullmatch(str(self.times))
        if found is None or not float(found[1]) < float(found[2]):
            raise VlpipeError(f"{self.where}: ts is {shown(self.times)}, wanted start and end like 12.5-18.3")
        return float(found[1]), float(found[2])


def read_tvqa(questions: File) -> Iterator[TvqaLine]:
    """Yields the lines in the order of the file. Raises VlpipeError with the place of what is wrong."""
    for file in list_files(questions.path, (".jsonl", ".json")):
        for where, record in _records(file):
            if lacking := [name for name in TEXTS if name not in record]:
                raise VlpipeError(f"{where} has no column {lacking[0]!r}; there are: {', '.join(record)}")
            said = {name: text_of(record[name], where).strip() for name in TEXTS}
            if empty := [name for name, value in said.items() if not value]:
                raise VlpipeError(f"{where}: {empty[0]!r} is empty")
            choices = [said[f"a{k}"] for k in range(NUM_CHOICES)]
            label = _label(record.get("answer_idx"), where)
            yield TvqaLine(said["qid"], said["vid_name"], said["q"], choices, label, record.get("ts"), where)


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of an array or of JSON lines, each with its place."""
    records = array_items(file) if file.suffix == ".json" else None
    for where, record in _lines(file) if records is None else records:
        if not isinstance(record, dict):
            raise VlpipeError(f"{where}: wanted a JSON object with the keys {', '.join(TEXTS)}")
        yield where, record


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    for where, line in text_lines(file):
        if isinstance(line, BadLine):
            raise line
        try:
            if line.strip():
                yield where, parse_json(line)
        except (ValueError, RecursionError) as error:
            raise VlpipeError(f"{where} is not valid JSON: {error}") from error


def _label(given: Any, where: str) -> int | None:
    if given is None:
        return None
    label = whole_number({"answer_idx": given}, "answer_idx", where)
    if not 0 <= label < NUM_CHOICES:
        raise VlpipeError(
            f"{where}: answer_idx is {given!r}, wanted a whole number from 0 to {NUM_CHOICES - 1}"
        )
    return label
