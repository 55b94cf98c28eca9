"""Steps as they are written, before their stage classes are known, and the names that steps may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vlpipe.pipeline.errors import shown
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, Where

STEP_NAME = re.compile(r"[a-z][a-z0-9_]*")
MAX_NAME = 100  # a step name is part of a folder name
NOT_NAMES = (
    "repeat",
    "rounds",
    "matrix",
)  # reserved: --set rounds=2, --set matrix.seed=[0], a profile's `repeat:`


@dataclass(kw_only=True)
class DraftStep:
    """A step that will run, before its stage class is known.

    base: its name in the file, `caption` for `caption@cf-0@2`; cell: axis -> label of the matrix, in the order of the name.
    """

    name: str
    base: str
    round: int  # from 1; 0 outside the loop
    params: Map
    cell: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    broken: bool = False  # a step name or a value of the matrix in it could not be resolved


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One `--set step.key=value`. For `rounds=2`, `step` is `rounds` and `keys` is empty."""

    step: str
    keys: tuple[str, ...]
    value: object
    where: Where


def check_name(name: str, where: Where, problems: list[Problem]) -> None:
    """Adds a problem if a step cannot have this name."""
    if not STEP_NAME.fullmatch(name) or name in NOT_NAMES or len(name) > MAX_NAME:
        why = "wanted lower-case letters, digits and _, a letter first"
        why = f"wanted at most {MAX_NAME} characters" if len(name) > MAX_NAME else why
        reserved = "the matrix" if name == "matrix" else "the loop"
        why = f"is reserved for {reserved}; give the step another name" if name in NOT_NAMES else why
        problems.append(where.problem(f"step name {shown(name)}: {why}"))
