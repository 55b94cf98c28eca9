"""Stages of `curation.py`: rows of JSONL files, and a filter by number of words that counts the rows it works on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import MapStage, Out, Reject, SourceStage, Work


def count(path: str, num: int) -> None:
    """Adds a line to a file that all workers append to."""
    if path:
        with open(path, "a") as file:
            file.write(f"{num}\n")


def enough_words(texts: list[str], least: int) -> list[bool]:
    return [len(text.split()) >= least for text in texts]


@dataclass(frozen=True, kw_only=True)
class JsonLines(SourceStage):
    """Rows of all JSONL files of a folder, in the order of their names."""

    folder: File
    NAME: ClassVar[str] = "benchmark_json_lines"

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("text", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        for path in sorted(Path(self.folder.path).glob("*.jsonl")):
            with path.open() as lines:
                yield pa.Table.from_pylist([json.loads(line) for line in lines], self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


@dataclass(frozen=True, kw_only=True)
class EnoughWords(MapStage):
    """Keeps texts of at least `least` words; takes `seconds` per shard more."""

    least: int
    seconds: float = 0.0
    calls: str = ""
    NAME: ClassVar[str] = "benchmark_enough_words"
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"seconds", "calls"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            count(self.calls, rows.num_rows)
            time.sleep(self.seconds)
            keep = enough_words(rows["text"].to_pylist(), self.least)
            gone = [i for i, k in zip(rows["id"].to_pylist(), keep, strict=True) if not k]
            return Out(rows.filter(pa.array(keep)), [Reject(i, "filtered", "few_words") for i in gone])

        yield work
