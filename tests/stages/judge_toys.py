"""A source of rows with texts, and a judge that says how often it was asked, for workflows in tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.stage import MapStage, SourceStage, Work
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.judging.column import with_score

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS)])


@dataclass(frozen=True, kw_only=True)
class Texts(SourceStage):
    """`num_rows` rows with a web and a synthetic text each: `web 3`, `synth 3`."""

    num_rows: int = 20

    def row_schema(self) -> pa.Schema:
        return SCHEMA

    def rows(self) -> Iterator[pa.Table]:
        rows = [[text(f"web {i}", "web"), text(f"synth {i}", "synth")] for i in range(self.num_rows)]
        yield pa.table([[f"r{i}" for i in range(self.num_rows)], rows], schema=SCHEMA)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


@dataclass(frozen=True, kw_only=True)
class Judge(MapStage):
    """The score of a text is its number x `times`. Each call adds a line to the file `calls`."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})

    column: str
    calls: str
    times: float = 0.1

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_score(inp, self.column, f"judge {self.times}", "judge")

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            with Path(self.calls).open("a") as file:
                file.write(f"{self.column}\n")
            texts = FlatTexts(rows["texts"])
            numbers = [float(t.split()[1]) * self.times for t in texts.field("text").to_pylist()]
            return with_columns(rows, **{self.column: texts.nested(pa.array(numbers, pa.float32()))})

        yield work


@dataclass(frozen=True, kw_only=True)
class Captioner(MapStage):
    """Appends the synthetic text `caption QUALITY`, whose number a `Judge` reads. Each call adds a line to `calls`."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls", "gate"})

    quality: float
    calls: str
    gate: File | None = None

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            with Path(self.calls).open("a") as file:
                file.write(f"{'full' if self.gate else 'sample'} {rows.num_rows}\n")
            texts = [[*ts, text(f"caption {self.quality}", "synth")] for ts in rows["texts"].to_pylist()]
            return rows.set_column(1, SCHEMA.field("texts"), pa.array(texts, TEXTS))

        yield work


@dataclass(frozen=True, kw_only=True)
class Pictures(SourceStage):
    """`num_rows` rows with a random picture and an alt-text each."""

    num_rows: int = 24

    def row_schema(self) -> pa.Schema:
        return pa.schema([*SCHEMA, heavy("image", pa.binary())])

    def rows(self) -> Iterator[pa.Table]:
        pictures = [png(number) for number in range(self.num_rows)]
        texts = [
            [text(("a red dog", "two dogs", "the blue circle")[i % 3], "web")] for i in range(self.num_rows)
        ]
        ids = [f"r{i}" for i in range(self.num_rows)]
        yield pa.table([ids, texts, pictures], schema=self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((20, 24), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()
