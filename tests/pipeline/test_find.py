"""Names in `use`: where they are looked for, and what is said when they are not there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlpipe.stages
from vlpipe.pipeline.workflow.params import find


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "own_pkg"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.startswith("own_pkg")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (
            "own_pkg.fine",
            "'own_pkg.fine' is not an import path; wanted MODULE:CLASS below own_pkg, or my_package.module:Class",
        ),
        ("fin:Fine", "no module 'fin', neither below own_pkg nor on the Python path; did you mean 'fine'?"),
        (
            "a.b:Fine",
            "no module 'a.b', neither below own_pkg nor on the Python path; there are: broken, fine, needy",
        ),
        (
            "fine.deeper:Fine",
            "no module 'fine.deeper', neither below own_pkg nor on the Python path;"
            " there are: broken, fine, needy",
        ),
        ("fine:Fien", "module own_pkg.fine has no class 'Fien'; did you mean 'Fine'?"),
        ("fine:number", "module own_pkg.fine has no class 'number'; there are: Fine"),
        ("needy:X", "importing own_pkg.needy needs the module 'no_such_package', which is not installed"),
        ("broken:X", "importing own_pkg.broken failed: ZeroDivisionError: division by zero"),
    ],
)
def test_find(own_package: Path, use: str, text: str) -> None:
    (own_package / "fine.py").write_text("class Fine: pass\nnumber = 3\n")
    (own_package / "needy.py").write_text("import no_such_package.deep\n")
    (own_package / "broken.py").write_text("1 / 0\n")
    assert find("fine:Fine", "own_pkg") is find("own_pkg.fine:Fine", "vlpipe.stages")
    with pytest.raises(ValueError) as info:
        find(use, "own_pkg")
    assert str(info.value) == text


def test_the_path_that_a_class_had_before_its_file_moved(own_package: Path) -> None:
    (own_package / "first.py").write_text("class Fetch:\n    pass\n")
    (own_package / "second.py").write_text(
        'class Base: ...\nclass Fetch:\n    NAME: str = "old.place:Fetch"\n'
    )
    with pytest.raises(
        ValueError, match="neither below own_pkg nor on the Python path; did you mean second:Fetch"
    ):
        find("old.place:Fetch", "own_pkg")


def test_every_shipped_stage_is_found_by_the_name_that_keys_hold() -> None:
    """As a path, or as a did-you-mean: a workflow written before a move says how to go on."""
    num_moved = 0
    for file in sorted(Path(vlpipe.stages.__path__[0]).rglob("*.py")):
        for cls, name in re.findall(
            r'^class (\w+)(?:(?!^class ).)*?^    NAME\b[^=]*= "([^"]+)"$', file.read_text(), re.M | re.S
        ):
            path = f"{'.'.join(file.relative_to(vlpipe.stages.__path__[0]).with_suffix('').parts)}:{cls}"
            if name == path:
                continue
            num_moved += 1
            with pytest.raises(ValueError, match=re.escape(f"; did you mean {path}?")):
                find(name, "vlpipe.stages")
    assert num_moved > 20
