"""A step of a workflow: its stage, its inputs, and what the engine is told about it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from vlpipe.pipeline.stage import SHARD_ROWS, Stage
from vlpipe.pipeline.workflow.params import files_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What each task or actor of a step asks for; `actors`: how many at once. Part of no key."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    memory_gb: Annotated[float, Field(ge=0)] = 0
    actors: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKeys:
    """The keys of a step that are the engine's, not the stage's."""

    resources: Resources = Resources()
    torch_threads: Annotated[int, Field(ge=1)] = 1
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    shard_rows: Annotated[int, Field(ge=1)] | None = None  # None: as the stage says
    row_group_timeout_s: Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX)] | None = None


ENGINE_KEYS = tuple(f.name for f in dataclasses.fields(EngineKeys))
STEP_KEYS = ("use", "from", *ENGINE_KEYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step that runs; inside `repeat` its name is NAME@ROUND."""

    name: str
    use: str
    stage: Stage
    inputs: tuple[str, ...]  # names of steps above
    resources: Resources
    torch_threads: int = 1
    max_reject_rate: float | None = None
    shard_rows: int = SHARD_ROWS
    row_group_timeout_s: float | None = None  # for one row group of a map stage; in no key
    params: Mapping[str, Any]  # all fields of the stage as plain JSON, files as they are written
    line: int

    @property
    def artifact_steps(self) -> tuple[str, ...]:
        """Steps whose artifacts this one reads."""
        return tuple(dict.fromkeys(file.step for _, file in files_of(self.stage) if file.step))
