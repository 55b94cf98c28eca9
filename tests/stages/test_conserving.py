"""Every gather stage says what becomes of its rows; those that conserve them are held to it by the engine."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import vlpipe.stages
from vlpipe.pipeline.stage import GatherStage


def shipped() -> list[type[GatherStage]]:
    for module in pkgutil.walk_packages(vlpipe.stages.__path__, "vlpipe.stages."):
        importlib.import_module(module.name)
    found, waiting = [], [GatherStage]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith("vlpipe.stages."):
            found.append(cls)
    return sorted(found, key=lambda cls: f"{cls.__module__}:{cls.__qualname__}")


def test_each_gather_stage_conserves_rows_or_says_what_its_rows_are() -> None:
    stages = shipped()
    assert len(stages) >= 23
    undecided = [cls.__qualname__ for cls in stages if bool(cls.ROWS_ARE) == cls.CONSERVES]
    assert undecided == []


@pytest.mark.parametrize("name", ["redecide:Decide", "exact:ExactDuplicates", "faiss:FaissDuplicates"])
def test_decisions_are_one_per_row(name: str) -> None:
    module, _, cls = name.partition(":")
    assert getattr(importlib.import_module(f"vlpipe.stages.dedup.{module}"), cls).CONSERVES
