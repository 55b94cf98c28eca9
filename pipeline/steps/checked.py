"""The steps of a workflow, and how one of them is found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vlpipe.pipeline.errors import VlpipeError, did_you_mean, shown
from vlpipe.pipeline.steps.step import Step


class _HasName(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def in_cell(self) -> bool: ...


Named = TypeVar("Named", bound=_HasName)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedWorkflow:
    """The steps of a workflow in the order they run, with stages made and names resolved. `load` reads one from YAML."""

    path: str
    name: str
    description: str  # the comment at the start of the file
    root: str  # folder or URL of the outputs
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """Returns the step `name`; see `find_step`."""
        return find_step(self.steps, name, self.path)


def base_name(name: str) -> str:
    """Returns the name of a step as the file has it: without a round or a cell."""
    return name.partition("@")[0]


def find_step(steps: Sequence[Named], name: str, where: str = "") -> Named:
    """Returns the step `name`; for a repeated step, the name without a round means its last round.

    where: the workflow's file, for the error. Raises VlpipeError if there is no such step, or one for each cell of a matrix.
    """
    found = find_steps(steps, name, where)
    if len(found) > 1:
        listed = ", ".join(one.name for one in found[:8]) + (", ..." if len(found) > 8 else "")
        raise VlpipeError(f"{shown(name)} is {len(found)} steps; name one of {listed}")
    return found[0]


def find_steps(steps: Sequence[Named], name: str, where: str = "") -> list[Named]:
    """As `find_step`, but the name without a cell of a matrix means the steps of all cells."""
    found: dict[str, Named] = {}
    for one in steps:
        base, _, rest = one.name.partition("@")
        cell = rest.partition("@")[0] if one.in_cell else ""
        if name in (one.name, base, f"{base}@{cell}" if cell else base):
            found[cell] = one  # the last round
    if found:
        return list(found.values())
    known = dict.fromkeys(text for one in steps for text in (one.name.partition("@")[0], one.name))
    problem = f"{where} has no step" if where else "there is no step"
    raise VlpipeError(f"{problem} {shown(name)}{did_you_mean(name, known)}")
