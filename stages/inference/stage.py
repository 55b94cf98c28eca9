"""The parameters that all stages have that run a model over pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vlpipe.stages.inference.precision import Precision


@dataclass(frozen=True, kw_only=True)
class RunsModel:
    """Base of stages that run a model over pictures, before MapStage or GatherStage.

    precision: `bf16`, half of the memory and several times the speed on a GPU; `fp32`, without TF32; `auto`, bf16 if
    the step asks for `gpus`, else fp32. The value that is used is in the key.
    decode_workers: threads that decode pictures while the model computes; default: the step's `cpus`. 0: none. Rows do
    not depend on it.
    """

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"decode_workers"})
    ADDED: ClassVar[frozenset[str]] = frozenset({"precision"})
    BEFORE: ClassVar[Mapping[str, Any]] = {"precision": "fp32"}

    precision: Precision = "auto"
    decode_workers: int | None = None

    def with_resources(self, cpus: float, gpus: float) -> Self:
        changes: dict[str, Any] = {}
        if self.precision == "auto":
            changes["precision"] = "bf16" if gpus else "fp32"
        if self.decode_workers is None:
            changes["decode_workers"] = max(1, int(cpus))
        return dataclasses.replace(self, **changes)

    def worker_problems(self) -> list[str]:
        """Returns error texts for `preflight`; empty if `decode_workers` is possible."""
        if self.decode_workers is None or self.decode_workers >= 0:
            return []
        return [
            f"decode_workers must be at least 0 (pictures are then decoded between batches), got {self.decode_workers}"
        ]
