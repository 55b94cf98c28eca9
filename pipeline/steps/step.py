"""A step of a workflow: its stage, its inputs, and its settings for the engine."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import ConfigDict, Field

from vlpipe.pipeline.errors import VlpipeError, did_you_mean, shown
from vlpipe.pipeline.files import files_of
from vlpipe.pipeline.stage import SHARD_ROWS, Stage


class _HasName(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def in_cell(self) -> bool: ...


KIND, KIND_AMOUNT = "accelerator_type:", 0.001  # as Ray's own option `accelerator_type` requests it
TAKEN = ("CPU", "GPU", "memory", "object_store_memory")
Named = TypeVar("Named", bound=_HasName)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Resources of each task, actor or training worker of a step. They are not part of keys.

    gpus: a whole number, or a fraction below 1: several workers share a GPU. accelerator: which kind, such as `A100`, by
    Ray's names; needs a GPU. custom: amounts of resources that nodes were started with (`ray start --resources
    '{"fast_disk": 1}'`); they keep a step on these nodes. actors: max number of actors at once. local_copies: copy the
    shards that the step reads to its node's disk first, unless they are on it (at most VLPIPE_CACHE_GB, 100 by default).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    memory_gb: Annotated[float, Field(ge=0)] = 0
    actors: Annotated[int, Field(ge=1)] = 1
    accelerator: str | None = None
    custom: Mapping[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)

    local_copies: bool = False

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: wanted a whole number or a fraction below 1, got {self.gpus:g}")
        if self.accelerator is not None and not self.gpus:
            raise ValueError(f"accelerator: {self.accelerator} needs a GPU; add `gpus: 1`, or a fraction")
        if taken := sorted(name for name in self.custom if name in TAKEN or name.startswith(KIND)):
            raise ValueError(
                f"custom: {taken[0]!r} has a key of its own: cpus, gpus, memory_gb or accelerator"
            )

    @property
    def more(self) -> dict[str, float]:
        """Returns Ray's resources beside CPUs, GPUs and memory; a kind of accelerator is one of them."""
        kind = {f"{KIND}{self.accelerator}": KIND_AMOUNT} if self.accelerator else {}
        return {**kind, **self.custom}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKeys:
    """The YAML keys of a step that configure the engine, not the stage."""

    resources: Resources = Resources()
    torch_threads: Annotated[int, Field(ge=1)] = 1
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    shard_rows: Annotated[int, Field(ge=1)] | None = None  # None: the stage's default
    row_group_timeout_s: Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX)] | None = None


ENGINE_KEYS = tuple(f.name for f in dataclasses.fields(EngineKeys))
STEP_KEYS = ("use", "from", "same_as", "matrix", *ENGINE_KEYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a run. Inside `repeat` its name is NAME@ROUND, with a matrix NAME@LABEL-LABEL."""

    name: str
    use: str
    stage: Stage
    inputs: tuple[str, ...]  # names of steps above
    resources: Resources
    torch_threads: int = 1
    max_reject_rate: float | None = None
    shard_rows: int = SHARD_ROWS
    row_group_timeout_s: float | None = None  # deadline for one row group of a map stage; not part of keys
    params: Mapping[str, Any]  # all fields of the stage as plain JSON, files as written in the YAML
    line: int  # in the workflow file, from 1
    in_cell: bool = False  # one of several steps that a matrix makes of one

    @property
    def artifact_steps(self) -> tuple[str, ...]:
        """Names of the steps whose artifacts this step reads."""
        return tuple(dict.fromkeys(file.step for _, file in files_of(self.stage) if file.step))


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
