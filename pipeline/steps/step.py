"""A step of a workflow: its stage, its inputs, and its settings for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from vlpipe.pipeline.files import files_of
from vlpipe.pipeline.stage import SHARD_ROWS, Stage

KIND, KIND_AMOUNT = "accelerator_type:", 0.001  # as Ray's own option `accelerator_type` requests it
TAKEN = ("CPU", "GPU", "memory", "object_store_memory")


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
