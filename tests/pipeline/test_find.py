"""Names in `use`: where they are looked for, and what is said when they are not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
