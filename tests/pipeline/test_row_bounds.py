"""`vlpipe plan` reads a list only for an estimate, never twice, and not at all where its length is known more cheaply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs

from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work


@dataclass(frozen=True, kw_only=True)
class Listed(SourceStage):
    """Rows 0..n-1, n as the file `list` says; each reading of it is noted."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"notes"})
    list: ListFile
    notes: str

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        with open(self.notes, "a") as file:
            file.write("x")
        for n in range(int(Path(self.list.path).read_text())):
            yield pa.table({"id": [f"id{n}"]})

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t


@dataclass(frozen=True, kw_only=True)
class Counted(Listed):
    def max_rows(self) -> int:
        return 1_234


@dataclass(frozen=True, kw_only=True)
class Twice(MapStage):
    FAN_OUT: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(pa.field("parent", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t


@dataclass(frozen=True, kw_only=True)
class Guesses(GatherStage):
    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def estimate(self, num_rows: int) -> str:
        return f"about {num_rows} rows of work"

    def run(self, job: Job) -> None: ...


class Case(Runs):
    def __init__(self, folder: Path, steps: str, source: str = "Listed") -> None:
        self.list, self.notes = folder / "list", folder / "notes"
        self.list.write_text("7")
        self.notes.write_text("")
        text = f'steps:\n  a: {{use: "~:{source}", list: {self.list}, notes: {self.notes}, shard_rows: 5}}\n{steps}'
        super().__init__(folder, text.replace("~", __name__))

    @property
    def num_read(self) -> int:
        return len(self.notes.read_text())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


ESTIMATES = '  g: {use: "~:Guesses", from: a}\n'


def test_without_an_estimate_no_list_is_read(tmp_path: Path) -> None:
    case = Case(tmp_path, "")
    case("plan")
    assert case.num_read == 0


def test_for_an_estimate_a_list_is_read_once_while_it_stays_the_same(tmp_path: Path) -> None:
    case = Case(tmp_path, ESTIMATES)
    for _ in range(3):
        assert "        about 7 rows of work" in case("plan")
    assert case.num_read == 1
    assert not case.root.exists()
    case.list.write_text("12")
    for _ in range(2):
        assert "        about 12 rows of work" in case("plan")
    assert case.num_read == 2


def test_with_a_root_it_is_remembered_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, ESTIMATES)
    case("run", "--local")
    case.list.write_text("12")
    read = case.num_read
    case("plan")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert "        about 12 rows of work" in case("plan")
    assert case.num_read == read + 1
    assert (case.root / "_cache/rows.json").exists()


def test_what_is_known_without_reading_is_not_read(tmp_path: Path) -> None:
    case = Case(tmp_path, ESTIMATES, source="Counted")
    assert "        about 1234 rows of work" in case("plan")
    assert case.num_read == 0


def test_nobody_knows_what_a_fan_out_gives(tmp_path: Path) -> None:
    case = Case(tmp_path, '  b: {use: "~:Twice", from: a}\n  g: {use: "~:Guesses", from: b}\n')
    assert "        about 0 rows of work" in case("plan")
    assert case.num_read == 0


@pytest.mark.parametrize("damage", ["", "[]", '{"a": "b"}', "[" * 100_000])
def test_a_damaged_memory_is_made_anew(tmp_path: Path, damage: str) -> None:
    case = Case(tmp_path, ESTIMATES)
    case("plan")
    kept = tmp_path / "cache/vlpipe/rows.json"
    good = kept.read_text()
    kept.write_text(damage)
    with pytest.warns(VlpipeWarning, match="row counts of lists cannot be read"):
        case("plan")
    assert kept.read_text() == good


def test_lists_of_the_shipped_stages_are_counted_by_their_metadata(tmp_path: Path) -> None:
    from vlpipe.stages.lists.list import count_at_most

    pq.write_table(pa.table({"url": ["a"] * 1000, "text": ["b"] * 1000}), tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("url\ttext\n" + "a\tb\n" * 20)
    assert count_at_most(str(tmp_path / "a.parquet")) == 1000
    assert count_at_most(str(tmp_path)) == 1000 + 22
