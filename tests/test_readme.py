"""What README and the pages on stages show is there, and their examples run as they stand."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.outputs import Outputs
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.testing import run_map

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STAGES = README + (ROOT / "docs/stages.md").read_text()
EXAMPLES = "".join((ROOT / f"docs/how_to/add_a_{what}.md").read_text() for what in ("stage", "loss"))


def example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of an example, imported from a file that holds the example and nothing else."""
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", EXAMPLES, re.S) if f"class {name}" in block
    ]
    module = f"readme_{name.lower()}"
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)
    return getattr(importlib.import_module(module), name)


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = example("DropShort", tmp_path, monkeypatch)(min_side=50)
    out = run_map(stage, pa.table({"id": ["a", "b"], "width": [49, 60], "height": [60, 50]}))
    assert out.table["id"].to_pylist() == ["b"]
    assert out.rejects == [Reject("a", "filtered", "too_small")]


def test_the_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nn.functional.normalize(torch.randn(4, 8), dim=1)
    objective = example("Cosine", tmp_path, monkeypatch)()
    batch = Batch(streams={}, same=torch.arange(4))
    found = objective(Outputs.of_features(None, batch, {"image_feat": image, "text_feat": image}))
    torch.testing.assert_close(found["cosine"].total, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert found["cosine"].count == 4
    assert tuple(found) == type(objective).LOSSES


def test_it_fits_a_front_page() -> None:
    assert len(README.splitlines()) <= 150


def test_every_file_it_links_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 15
    assert all((ROOT / link).exists() for link in links), links


def test_every_workflow_it_names_is_there() -> None:
    names = set(re.findall(r"workflows/(?!SYSTEM)\w+\.yaml", README))
    assert names
    assert all((ROOT / name).exists() for name in names)


def test_every_stage_it_names_is_there() -> None:
    """`room.module` and `room.module:Class` in its tables."""
    rooms = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir()}
    named = set(re.findall(r"`(\w+)\.(\w+)(?::(\w+))?`", STAGES))
    found = {one for one in named if one[0] in rooms}
    assert len(found) > 20
    for room, module, cls in found:
        file = ROOT / "stages" / room / f"{module}.py"
        assert file.exists(), file
        assert not cls or f"class {cls}(" in file.read_text(), cls


def test_the_house_is_drawn_as_it_is() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README, re.S | re.M)
    (drawn,) = [block for block in blocks if "pipeline/  " in block]
    for part in ("pipeline", "stages"):
        text = drawn[drawn.index(f"{part}/ ") :]
        text = text[: re.search(r"\n(?=\w)", text).start()]  # type: ignore[union-attr]
        there = {p.name for p in (ROOT / part).iterdir() if (p / "__init__.py").exists()}
        assert set(re.findall(r"\b(\w+)/", text)) - {part} == there
        files = {p.name for p in (ROOT / part).glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"\b(\w+\.py)\b", text)) == files


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:pipeline|stages|models|docs|benchmarks)/[\w./]*)`", text)
    assert len(named) > 20
    assert all((ROOT / name).exists() for name in named), named
