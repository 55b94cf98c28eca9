"""Each stage that reads a model says before the run if the step that makes it makes one that cannot do what is asked."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from vlpipe.models.build import find
from vlpipe.models.interface.model import Model
from vlpipe.pipeline.describe.catalogue import entries
from vlpipe.pipeline.files import Weights


class Bare(Model):
    """Has no capability."""


class MakesBare:
    """Stands for a step that makes such a model."""

    def stand_in(self, stages: Any) -> Model:
        return Bare()


def readers_of_a_model() -> list[str]:
    """The stages with weights `model` that ask for capabilities, before the run or in it."""
    uses = []
    for entry in entries():
        cls = find(entry.use, "vlpipe.stages")
        asks = any(
            "preflight_after" in vars(base)
            for base in cls.__mro__[:-1]
            if base.__module__.startswith("vlpipe.stages")
        ) or "needs=[" in inspect.getsource(cls)
        if asks and any(
            field.name == "model" and "Weights" in field.type for field in dataclasses.fields(cls)
        ):
            uses.append(entry.use)
    return uses


@pytest.mark.parametrize("use", readers_of_a_model())
def test_a_model_without_what_the_stage_needs_is_named_before_the_run(use: str) -> None:
    cls = find(use, "vlpipe.stages")
    stage = object.__new__(cls)  # its other parameters are their defaults
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            object.__setattr__(stage, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(stage, field.name, field.default_factory())
        elif "Weights" in field.type:
            object.__setattr__(stage, field.name, Weights(step="made"))
    object.__setattr__(stage, "model", Weights(step="made"))
    problems = stage.preflight_after({"made": MakesBare()})
    assert any("Bare" in problem for problem in problems), problems
