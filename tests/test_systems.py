"""The generated table of systems: what it finds, and how it judges a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systems_tool", HERE / "tools/systems.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules["systems_tool"] = found
    spec.loader.exec_module(found)
    return found


def test_every_system_is_found_with_its_files(tool: ModuleType) -> None:
    found = {one.name: one for one in tool.systems()}
    assert {"bert", "blip", "clip", "lxmert", "mae", "videobert", "vilt"} <= set(found)
    assert found["blip"].workflow.name == "blip_capfilt.yaml"
    for one in found.values():
        assert one.title, one.name
        assert one.paper.startswith("https://"), one.name
        assert one.blocks, one.name
    assert found["clip"].parity == ["tests/models/systems/image_text/test_clip.py"]
    assert tool.objectives(found["clip"].declared) == ["infonce"]


def test_the_page_is_what_the_code_is(tool: ModuleType) -> None:
    """Its first table; the second is of runs."""
    page = tool.PAGE.read_text(encoding="utf-8")
    missing = [row for row in tool.rows(tool.systems()) if row not in page]
    assert not missing, "docs/systems.md is not up to date: run `python tools/systems.py`"


FOUND = {"a.x": (0.5, 100), "b.x": (0.25, 100), "a.gain": (5.0, 100)}


@pytest.mark.parametrize(
    ("criterion", "holds"),
    [
        ({"figure": "a.x", "above": "b.x", "standard_errors": 3}, True),
        ({"figure": "a.x", "above": "b.x", "standard_errors": 4}, False),  # 4 x 0.066 = 0.264
        ({"figure": "a.x", "above": "b.x", "by": 0.25}, True),
        ({"figure": "a.x", "above": "b.x", "by": 0.26}, False),
        ({"figure": "a.gain", "above": 4}, True),
        ({"figure": "a.x", "below": 0.5}, True),
        ({"figure": "a.x", "below": 0.49}, False),
        ({"figure": "a.x", "below": "b.x", "by": -0.3}, True),
        ({"figure": "a.x", "below": "b.x", "by": -0.2}, False),
        ({"figure": "a.y", "above": 0.1}, None),
        ({"figure": "a.x", "above": "c.x"}, None),
    ],
)
def test_criteria(tool: ModuleType, criterion: dict[str, Any], holds: bool | None) -> None:
    got, said = tool.judge(criterion, FOUND)
    assert got is holds
    assert str(criterion["figure"]) in said


def test_figures_are_read_from_a_root(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "_steps.json").write_text('{"sha256": "0", "probe": {"folder": "probe-0123abcd"}}')
    (tmp_path / "probe-0123abcd").mkdir()
    table = pa.table({"name": ["probe", "none"], "value": [0.5, None], "num_rows": [10, 0]})
    pq.write_table(table, tmp_path / "probe-0123abcd/000000.parquet")
    assert tool.figures(tmp_path) == {"probe.probe": (0.5, 10)}
    assert tool.figures(tmp_path / "nowhere") == {}


POOLED = {"figure": "a.x", "above": "b.x", "pooled_deviations": 2}


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([(0.5, 0.37), (0.6, 0.47)], False),  # both deviate by 0.071; 0.13 is not more than 0.141
        ([(0.5, 0.35), (0.6, 0.45)], True),
        ([(0.5, 0.1)], None),
    ],
)
def test_criteria_over_seeds(tool: ModuleType, values: list[tuple[float, float]], holds: bool | None) -> None:
    got, said = tool.judge_seeds(POOLED, [{"a.x": (a, 10), "b.x": (b, 10)} for a, b in values])
    assert got is holds
    assert "a.x" in said


def test_downstream_tasks_are_run_and_shown(tool: ModuleType) -> None:
    found = {one.name: one for one in tool.tasks()}
    assert {"downstream/vqa", "downstream/retrieval", "downstream/video_qa"} <= set(found)
    assert all(one.declared["x-criteria"] for one in found.values())
    page = tool.page(tool.systems(), list(found.values()))
    assert "| vqa | `downstream/vqa.yaml` | " in page
    assert "scores.ir@10 above scratch_scores.ir@10: " in page
    assert tool.root_of(found["downstream/vqa"], 0).name == "seed_0"


def test_criteria_of_shipped_workflows_name_steps(tool: ModuleType) -> None:
    for one in (*tool.systems(), *tool.tasks()):
        for criterion in one.declared.get("x-criteria", []):
            for key in ("figure", "above", "below"):
                if isinstance(criterion.get(key), str):
                    step = criterion[key].partition(".")[0].partition("@")[0]
                    assert step in one.declared["steps"], criterion
        for key in one.declared.get("x-seeds", []):
            assert key.partition(".")[0] in one.declared["steps"], key
