"""Map stages that read files: two by name, and a list of them. What joins them is in another module, imported late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


def text_of(file: File) -> str:
    """A file's text; of a folder the texts of its files by name."""
    path = Path(file.path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return "+".join(f.read_text().strip() for f in files)


@dataclass(frozen=True, kw_only=True)
class Pair(MapStage):
    VERSION: ClassVar[int] = 1
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    teacher: File
    student: File
    more: tuple[File, ...] = ()
    note: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        from mine.glue import glue

        mine = glue(text_of(self.teacher), text_of(self.student), *map(text_of, self.more))

        def work(table: pa.Table) -> pa.Table:
            note("Pair", table["id"].to_pylist())
            said = [f"{text}|P{mine},{MARK}" for text in table["trace"].to_pylist()]
            return table.set_column(
                table.schema.get_field_index("trace"), "trace", pa.array(said, pa.string())
            )

        yield work
