"""Stages as far as a workflow looks at them, and `check`: a workflow text has exactly these problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import heavy, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work
from vlpipe.pipeline.workflow.load import Workflow


class Source(SourceStage):
    """A stage as far as a workflow looks at it: nothing here is run."""

    def rows(self) -> Iterator[pa.Table]:
        raise NotImplementedError

    def open(self) -> AbstractContextManager[Work]:
        raise NotImplementedError


class RowWise(MapStage):
    def open(self) -> AbstractContextManager[Work]:
        raise NotImplementedError


class Gather(GatherStage):
    def run(self, job: Job) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class List(Source):
    seed: int
    mode: Literal["fast", "safe"] = "fast"
    on: bool = False
    column: str = "text"

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(
            inp, heavy(self.column, pa.string()) if self.on else pa.field(self.column, pa.string())
        )


@dataclass(frozen=True)
class Part:
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Score(RowWise):
    model: Weights | None = None
    threshold: float = 0.5
    parts: dict[str, Any] | None = None
    part: Part = Part()
    table: File | None = None

    def __post_init__(self) -> None:
        if self.threshold > 1:
            raise ValueError(f"wanted threshold up to 1, got {self.threshold:g}")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Score", text=pa.string())
        return with_field(inp, pa.field("score", pa.float32()))

    def preflight(self) -> list[str]:
        return ["threshold 0 keeps everything"] if self.threshold == 0 else []


@dataclass(frozen=True, kw_only=True)
class Train(Gather):
    pass


Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """check(yaml, problems): `~` in both stands for the module of these stages."""
    monkeypatch.chdir(tmp_path)

    def check(text: str, wanted: Sequence[str], **options: Any) -> None:
        Path("w.yaml").write_text(dedent(text).replace("~", __name__))
        with pytest.raises(WorkflowError) as info:
            Workflow.load("w.yaml", **options)
        head, *lines = str(info.value).splitlines()
        assert [line.removeprefix("  ") for line in lines] == [w.replace("~", __name__) for w in wanted]
        assert head == f"w.yaml has {len(wanted)} problem(s):"

    return check
