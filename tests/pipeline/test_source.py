"""The hash of a stage's code: its static imports, as far as they are ours or the user's, without comments and docstrings."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs
from helpers import planned, run

from vlpipe.pipeline.engine.records import source_hash as source
from vlpipe.pipeline.engine.records.source_hash import Sources, recorded_hash
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Stage

STAGE = '''"""A user's stage."""
from __future__ import annotations
from contextlib import contextmanager
from dataclasses import dataclass
from vlpipe.pipeline.stage import MapStage
from .helper import value


@dataclass(frozen=True, kw_only=True)
class Mine(MapStage):
    """Does something."""

    model: str = ""

    @contextmanager
    def open(self):
        import importlib
        from . import lazily  # in the function
        literal = importlib.import_module(".by_name", __package__)
        with open(os.path.join(os.path.dirname(__file__), "words.txt")) as file:
            yield lambda rows: rows
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "ownpkg"
    folder.mkdir()
    files = {
        "__init__": "",
        "stage": STAGE,
        "helper": "import torch\nfrom ownpkg.deep import more\nvalue = more\n",
        "deep": "more = 1\n",
        "lazily": "",
        "by_name": "",
        "unused": "",
        "net": "class Net: ...\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "words.txt").write_text("a b")
    (folder / "other.txt").write_text("a b")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(source, "_running", {})  # what a new process knows
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "ownpkg"]:
        del sys.modules[name]


def stage(model: str = "") -> Stage:
    found: Stage = importlib.import_module("ownpkg.stage").Mine(model=model)
    return found


def source_hash(of: Stage) -> str:
    return Sources().hash(of)


def edit(file: Path, text: str) -> None:
    before = file.stat().st_mtime_ns
    file.write_text(text)
    os.utime(file, ns=(before + 1_000_000, before + 1_000_000))


@pytest.mark.parametrize("name", ["__init__", "stage", "helper", "deep", "lazily", "by_name"])
def test_what_is_imported_counts_wherever_the_import_stands(package: Path, name: str) -> None:
    before = source_hash(stage())
    file = package / f"{name}.py"
    edit(file, file.read_text() + "x = 1\n")
    assert source_hash(stage()) != before


def test_comments_docstrings_positions_and_what_nobody_imports_do_not_count(package: Path) -> None:
    before = source_hash(stage())
    edit(
        package / "stage.py",
        STAGE.replace("Does something", "Does it").replace("    @", "\n    # why\n    @"),
    )
    edit(package / "helper.py", '"""New."""\n' + (package / "helper.py").read_text() + "\n\n# done")
    edit(package / "unused.py", "x = 1")
    edit(package / "other.txt", "c")
    assert source_hash(stage()) == before


def test_a_module_that_moves_is_the_same_code(package: Path) -> None:
    before = source_hash(stage())
    (package / "room").mkdir()
    (package / "room/__init__.py").write_text('"""A room."""\n')
    (package / "deep.py").rename(package / "room/deeper.py")
    edit(package / "helper.py", "from ownpkg.room.deeper import more\nimport torch\nvalue = more\n")
    text = (package / "stage.py").read_text()
    moved = "from vlpipe.pipeline import MapStage"
    edit(package / "stage.py", text.replace("from vlpipe.pipeline.stage import MapStage", moved))
    assert source_hash(stage()) == before
    edit(package / "room/__init__.py", "more = 2")
    assert source_hash(stage()) != before


def test_a_name_that_comes_from_another_module_is_other_code(package: Path) -> None:
    """Also when that one was in the closure already."""
    edit(package / "lazily.py", "more = 2")
    before = source_hash(stage())
    edit(package / "helper.py", "import torch\nfrom ownpkg.lazily import more\nvalue = more\n")
    edit(package / "by_name.py", "from ownpkg.deep import more")
    other = source_hash(stage())
    edit(package / "by_name.py", "from ownpkg.lazily import more")
    edit(package / "helper.py", "import torch\nfrom ownpkg.deep import more\nvalue = more\n")
    assert len({before, other, source_hash(stage())}) == 3
    edit(package / "helper.py", "import torch\nfrom numpy import more\nvalue = more\n")
    one = source_hash(stage())
    edit(package / "helper.py", "import torch\nfrom scipy import more\nvalue = more\n")
    assert source_hash(stage()) != one


def test_a_data_file_that_is_named_counts(package: Path) -> None:
    before = source_hash(stage())
    edit(package / "words.txt", "a b c")
    assert source_hash(stage()) != before


def test_a_class_that_a_parameter_names_counts(package: Path) -> None:
    plain, named = source_hash(stage()), source_hash(stage("ownpkg.net:Net"))
    assert plain != named
    edit(package / "net.py", "class Net:\n    width = 2\n")
    assert source_hash(stage("ownpkg.net:Net")) != named
    assert source_hash(stage()) == plain


def test_a_raised_version_of_a_class_that_a_parameter_names_makes_the_rows_again(
    package: Path, tmp_path: Path
) -> None:
    (package / "stage.py").write_text(STAGE.replace("import importlib\n", "import importlib, os\n"))
    text = HALF.replace("from: numbers", 'from: numbers, model: "ownpkg.net:Net"')
    before = run(tmp_path, text)["mine"]
    assert before.keyed.identity == ("ownpkg.stage:Mine", 1)
    edit(package / "net.py", "class Net:\n    VERSION = 1\n\n\nclass Other:\n    VERSION = 5\n")
    assert planned(tmp_path, text)[0][-1].is_done
    edit(package / "net.py", "class Net:\n    VERSION: ClassVar[int] = 2\n")
    after = planned(tmp_path, text)[0][-1]
    assert not after.is_done
    assert after.reason == "VERSION of a class that its parameters name changed: ownpkg.net:Net 2"
    edit(package / "net.py", "class Net: ...\n")
    assert planned(tmp_path, text)[0][-1].keyed.step_key == before.keyed.step_key


def test_installed_packages_and_the_engine_do_not_count(package: Path) -> None:
    files = [path for path, _, _ in source.running_source(stage()).marks]
    assert {Path(path).parent for path in files} == {package}


def test_code_edited_while_it_runs_equals_no_code(package: Path) -> None:
    one = stage()
    before = recorded_hash(one)
    assert before == source_hash(one)
    edit(package / "deep.py", "more = 2\n")
    assert before in recorded_hash(one)
    assert recorded_hash(one) not in (before, source_hash(one))


HALF = """
name: half
steps:
  numbers: {use: "toys:Numbers", num_rows: 8, shard_rows: 2}
  mine: {use: "ownpkg.stage:Mine", from: numbers}
"""


def test_shards_of_two_codes_in_one_step_are_told(package: Path, tmp_path: Path) -> None:
    """After a kill the step goes on with other code: `plan` says so, before and after; strict makes nothing of both."""
    stage_py = package / "stage.py"
    stage_py.write_text(
        STAGE.replace("import importlib\n", "import importlib, os\n").replace(
            "lambda rows: rows", "self.work"
        )
        + "\n    def work(self, rows):\n        return rows\n"
    )
    steps = run(tmp_path, HALF)
    folder = tmp_path / "root" / steps["mine"].folder
    (folder / "manifest.json").unlink()
    (folder / "_receipts" / "000001.json").unlink()
    for name in [n for n in sys.modules if n.partition(".")[0] == "ownpkg"]:
        del sys.modules[name]
    source._running.clear()
    time.sleep(0.01)
    stage_py.write_text(stage_py.read_text().replace("return rows", "return rows.slice(0)"))
    half, _ = planned(tmp_path, HALF)
    assert "made by different code" in half[-1].warning
    mixed = run(tmp_path, HALF)["mine"]
    assert mixed.manifest is not None
    assert len(mixed.manifest.sources) == 2
    after, _ = planned(tmp_path, HALF)
    assert after[-1].is_done
    assert "some of its rows were made by different code" in after[-1].warning


def test_strict_uses_nothing_that_other_code_made(package: Path, tmp_path: Path) -> None:
    from vlpipe.pipeline.cli.app import warn

    run(tmp_path, HALF.replace("ownpkg.stage:Mine", "toys:Scale"))
    steps, _ = planned(tmp_path, HALF.replace("ownpkg.stage:Mine", "toys:Scale"))
    steps[-1].warning = "made by different code"
    with pytest.raises(VlpipeError, match="--strict: the rows of 1 step"):
        warn(steps, strict=True)


COUNTS = '''"""A user's gather step."""
from dataclasses import dataclass
import pyarrow as pa
from vlpipe.pipeline.stage import GatherStage, Job


@dataclass(frozen=True, kw_only=True)
class Counts(GatherStage):
    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("num_rows", pa.int64())])

    def run(self, job: Job) -> None:
        num_rows = sum(batch.num_rows for one in job.inputs for batch in one.batches(["id"]))
        job.emit(pa.table({"num_rows": [num_rows]}))
'''


def test_strict_makes_a_gather_step_again_whose_code_changed_while_its_input_had_a_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input is not done when the workflow is planned; it then proves to be the shards of before."""
    code = tmp_path / "code" / "counts.py"
    code.parent.mkdir()
    code.write_text(COUNTS)
    monkeypatch.syspath_prepend(str(code.parent))
    text = (
        "name: strict\nsteps:\n  numbers: {use: 'toys:Numbers', num_rows: 4, shard_rows: 2}\n"
        "  scale: {use: 'toys:Scale', from: numbers}\n  counts: {use: 'counts:Counts', from: scale}\n"
    )
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    code.write_text(COUNTS.replace("[num_rows]", "[-num_rows]"))
    del sys.modules["counts"]
    importlib.invalidate_caches()
    monkeypatch.setattr(source, "_running", {})  # what a new process knows
    runs.file.write_text(text.replace("scale:", "twice:").replace("from: scale", "from: twice"))
    runs("run", "--local", "--strict")
    (shard,) = runs.step("counts").glob("[0-9]*.parquet")
    assert pq.read_table(shard)["num_rows"].to_pylist() == [-4]
    runs("plan", "--strict")
