"""The YAML keys of a step that are no parameters of its stage."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vlpipe.pipeline.steps.step import Resources

ONE_CPU = Resources()


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKeys:
    """The YAML keys of a step that configure the engine, not the stage."""

    resources: Resources = ONE_CPU
    torch_threads: Annotated[int, Field(ge=1)] = 1
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    shard_rows: Annotated[int, Field(ge=1)] | None = None  # None: the stage's default
    row_group_timeout_s: Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX)] | None = None


ENGINE_KEYS = tuple(f.name for f in dataclasses.fields(EngineKeys))
STEP_KEYS = ("use", "from", "same_as", "matrix", *ENGINE_KEYS)
