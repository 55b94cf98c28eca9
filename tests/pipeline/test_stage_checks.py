"""A mistake in a stage's class is a sentence when the workflow is read, not an odd failure, or nothing, hours later."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pytest
from pydantic import BeforeValidator

import vlpipe.stages
from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.files import File, ListFile, Listing
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Stage, Work
from vlpipe.pipeline.workflow.load import STEP_KEYS, Workflow
from vlpipe.pipeline.workflow.stage_checks import class_problems


@dataclass(frozen=True, kw_only=True)
class Good(SourceStage):
    SHARD_ROWS: ClassVar[int] = 7
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})
    calls: str = ""
    num_rows: int = 0

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        yield self.row_schema().empty_table()

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t


@dataclass(frozen=True, kw_only=True)
class Pass(MapStage):
    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t


@dataclass(frozen=True, kw_only=True)
class Gather(GatherStage):
    def run(self, job: Job) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ReadsList(Pass):
    """With the lists' content out of its shards' keys, rows made from an earlier list would be used."""

    list: ListFile
    more: tuple[Listing, ...] = ()
    table: File | None = None


@dataclass(kw_only=True)
class Thawed(MapStage):
    open = Pass.open


@dataclass(frozen=True)
class ByPlace(Pass):
    size: int = 1


class Undecorated(Pass):
    size: int = 1


class OnlyOther(Pass):  # has no parameter of its own: right as it is
    VERSION: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Typo(Pass):
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"workers"})
    worker: int = 1


@dataclass(frozen=True, kw_only=True)
class NotASet(Pass):
    NOT_IN_KEY: ClassVar[Any] = "workers"
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Shadows(Pass):
    resources: int = 1
    use: str = ""
    shard_rows: int = 3


@dataclass(frozen=True, kw_only=True)
class Hides(Pass):
    schema: str = ""  # type: ignore[assignment]
    estimate: int = 1  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class OddVersion(Pass):
    VERSION: ClassVar[Any] = "2.0"


@dataclass(frozen=True, kw_only=True)
class TrueVersion(Pass):
    VERSION: ClassVar[Any] = True


@dataclass(frozen=True, kw_only=True)
class OneColumn(Pass):
    READS_HEAVY: ClassVar[Any] = "image"


@dataclass(frozen=True, kw_only=True)
class Percent(Pass):
    MAX_REJECT_RATE: ClassVar[float] = 5


@dataclass(frozen=True, kw_only=True)
class Yields(MapStage):
    def open(self) -> Iterator[Work]:  # type: ignore[override]
        yield lambda t: t


@dataclass(frozen=True, kw_only=True)
class NoWork(MapStage):
    pass


@dataclass(frozen=True, kw_only=True)
class NoRun(GatherStage):
    pass


class Tree:
    pass


@dataclass(frozen=True, kw_only=True)
class OddType(Pass):
    tree: Tree | None = None


@dataclass(frozen=True, kw_only=True)
class Undefined(Pass):
    tree: "Bush | None" = None  # type: ignore[name-defined]  # noqa: F821, UP037


WANTED = "wanted @dataclass(frozen=True, kw_only=True)"


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        (Thawed, [f"Thawed is not frozen: a parameter could change after its key was made; {WANTED}"]),
        (ByPlace, [f"ByPlace takes positional parameters; {WANTED}"]),
        (
            Undecorated,
            [
                "Undecorated is not a dataclass itself, so size would not be parameters; add"
                " @dataclass(frozen=True, kw_only=True)"
            ],
        ),
        (OnlyOther, []),
        (Typo, ["Typo.NOT_IN_KEY names 'workers', which is not a parameter; did you mean 'worker'?"]),
        (NotASet, ["NotASet.NOT_IN_KEY: wanted frozenset({NAME, ...}), got 'workers'"]),
        (
            Shadows,
            [
                f"Shadows: a parameter cannot be called {name!r}, which is a key of every step; give it another name"
                for name in ("resources", "use", "shard_rows")
            ],
        ),
        (
            Hides,
            [
                f"Hides: a parameter cannot be called {name!r}, which every stage has already; give it another name"
                for name in ("schema", "estimate")
            ],
        ),
        (OddVersion, ["OddVersion.VERSION: wanted a whole number from 0, got '2.0'"]),
        (TrueVersion, ["TrueVersion.VERSION: wanted a whole number from 0, got True"]),
        (OneColumn, ["OneColumn.READS_HEAVY: wanted a tuple of column names, got 'image'"]),
        (Percent, ["Percent.MAX_REJECT_RATE: wanted a number from 0 to 1, got 5"]),
        (Yields, ["Yields.open yields, so it needs @contextmanager (from contextlib) above it"]),
        (NoWork, ["NoWork has no method open(), which every MapStage needs"]),
        (NoRun, ["NoRun has no method run(), which every GatherStage needs"]),
        (OddType, ["OddType.tree: no YAML value can be converted to __main__.Tree | None"]),
        (
            ReadsList,
            [
                f"ReadsList.{name}: only a SourceStage, whose method rows() reads it, may have a ListFile; wanted a File"
                for name in ("list", "more")
            ],
        ),
        (Good, []),
        (
            Tree,
            [
                "'__main__:Tree' is not a stage; wanted a dataclass that inherits from MapStage, SourceStage or GatherStage"
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_class(cls: type, wanted: list[str]) -> None:
    assert [s.replace(__name__, "__main__") for s in class_problems(cls, STEP_KEYS)] == wanted


def test_a_type_that_means_nothing() -> None:
    (said,) = class_problems(Undefined, STEP_KEYS)
    assert said.startswith("Undefined: the type of a parameter cannot be resolved: NameError: name 'Bush'")


def test_no_shipped_stage_has_such_a_mistake() -> None:
    looked_at = 0
    for module in pkgutil.walk_packages(vlpipe.stages.__path__, "vlpipe.stages."):
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and issubclass(cls, Stage) and cls.__module__ == module.name:
                looked_at += 1
                said = class_problems(cls, STEP_KEYS)  # a base of several stages has no work of its own
                assert all("has no method" in problem for problem in said), said
    assert looked_at > 60


def load(tmp_path: Path, steps: str) -> Workflow:
    file = tmp_path / "w.yaml"
    file.write_text(f"steps:\n{steps}".replace("~", __name__))
    return Workflow.load(str(file))


def problems(tmp_path: Path, steps: str) -> list[str]:
    with pytest.raises(WorkflowError) as info:
        load(tmp_path, steps)
    return [f"{line}: {text}".replace(__name__, "~") for line, text in info.value.problems]


def test_they_are_said_with_the_line(tmp_path: Path) -> None:
    said = problems(tmp_path, '  a: {use: "~:Good"}\n  b: {use: "~:Yields", from: a}\n')
    assert said == ["3: b.use: Yields.open yields, so it needs @contextmanager (from contextlib) above it"]


def test_keys_that_would_do_nothing(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        '  a: {use: "~:Good", shard_rows: 5, max_reject_rate: 0.1}\n'
        '  b: {use: "~:Pass", from: a, shard_rows: 5}\n'
        '  c: {use: "~:Gather", from: a, shard_rows: 5, max_reject_rate: 0.1}\n',
    )
    assert said == [
        "3: b: shard_rows is for steps that list or gather rows; this one keeps the shards it reads",
        "4: c: max_reject_rate is for steps that work row by row",
    ]


def test_a_stage_says_how_many_rows_a_shard_has(tmp_path: Path) -> None:
    steps = load(
        tmp_path,
        '  a: {use: "~:Good"}\n  b: {use: "~:Good", shard_rows: 9}\n  c: {use: "~:Gather", from: a}\n',
    )
    assert [step.shard_rows for step in steps.steps] == [7, 9, 10_000]


class Color(Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Rich(Pass):
    color: Color = Color.RED
    path: Path = Path("a/b")
    day: date = date(2020, 1, 1)
    raw: bytes = b"x"


@dataclass(frozen=True, kw_only=True)
class Unwritable(Pass):
    tree: Annotated[Any, BeforeValidator(lambda _: Tree())] = field(default_factory=Tree)


@dataclass(frozen=True, kw_only=True)
class Breaks(Pass):
    size: int = 1

    def __post_init__(self) -> None:
        if self.size > 1:
            raise KeyError("size")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp if self.size else {}["no such"]  # type: ignore[return-value]

    def preflight(self) -> list[str]:
        return [str(1 / (self.size + 1))] if self.size < 0 else []


def test_parameters_that_yaml_can_write_are_fine(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        '  a: {use: "~:Good"}\n  b: {use: "~:Rich", from: a, color: red, path: c/d, day: "2021-02-03"}\n',
    )
    said = found.step("b").params
    assert (said["path"], said["day"], said["raw"]) == ("c/d", "2021-02-03", b"x".hex())


def test_a_parameter_that_cannot_be_written_down(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, '  a: {use: "~:Good"}\n  b: {use: "~:Unwritable", from: a}\n')
    assert said.startswith("3: b.tree: ")
    assert "Tree" in said


def test_a_stage_that_breaks_while_it_is_looked_at(tmp_path: Path) -> None:
    """Which file and line, since there is no traceback."""
    said = problems(
        tmp_path,
        '  a: {use: "~:Good"}\n'
        '  b: {use: "~:Breaks", from: a, size: 2}\n'
        '  c: {use: "~:Breaks", from: a, size: -1}\n',
    )
    assert said[0].startswith(f"3: b: Breaks failed: KeyError: 'size' ({__file__} line ")
    assert said[1].startswith(
        f"4: c: Breaks.preflight failed: ZeroDivisionError: division by zero ({__file__} line "
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workflow", "step", "wanted"),
    [
        ("blip_capfilt", "images", 1_000),
        ("capfilt_ablation", "images@2", 1_000),
        ("detector_demo", "images", 10_000),
        ("detector_demo", "heldout_images", 10_000),
        ("video_demo", "videos", 10_000),
    ],
)
def test_the_demos_keep_their_shards(workflow: str, step: str, wanted: int) -> None:
    assert Workflow.load(workflow).step(step).shard_rows == wanted


def test_what_is_fetched_comes_in_small_shards(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("url\ttext\nhttp://a.example/1\tone\n")
    made = load(tmp_path, f'  a: {{use: "fetching.images:FetchImages", list: {tmp_path}/list.tsv}}\n')
    assert made.step("a").shard_rows == 2_000
