"""How a training step is spread over processes: `processes` and `mesh` beside `num_workers`. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.parallel.mesh import Mesh


class Spread:
    """Base of a recipe. `num_workers` is part of the key: it says which rows a step has, those of so many readers side by
    side. `processes`, which train them this time, and `mesh` are not: on others, means over all rows of a step are the same
    but for rounding. Losses that depend on which rows pass forward together, and batch norms, keep that number of rows.
    """

    num_workers: int
    processes: int | None
    least_processes: int | None
    mesh: Mesh | None
    batch_size: int
    accumulate: int
    precision: str
    compile: bool
    balance_tokens: bool
    adversarial: Adversarial | None
    find_unused_parameters: bool | None

    @property
    def num_processes(self) -> int:
        """Processes that train this time."""
        return self.processes or self.num_workers

    @property
    def num_ranks(self) -> int:
        """Processes with rows of their own."""
        same = 1 if self.mesh is None else self.mesh.tensor * self.mesh.pipeline
        return max(1, self.num_processes // max(1, same))

    @property
    def micro_batches(self) -> int:
        """`accumulate`; with `processes`, as many as leave the rows of one as they are with `num_workers`, if they can."""
        if self.processes is None:
            return self.accumulate
        wanted = self.accumulate * self.num_workers
        return wanted // self.num_ranks if wanted % self.num_ranks == 0 else self.accumulate

    @property
    def keeps_micro_batches(self) -> bool:
        """Whether the rows that pass forward together are as many as with `num_workers` processes."""
        return (
            self.processes is None
            or self.micro_batches * self.num_ranks == self.accumulate * self.num_workers
        )

    def _mesh_problems(self) -> list[str]:
        """Returns what is wrong with `mesh`, and what of this recipe does not go with it."""
        if self.mesh is None:
            return []
        found = self.mesh.problems(
            self.num_processes, "num_workers" if self.processes is None else "processes"
        )
        if self.mesh.pipeline > 1:
            found += [text for wrong, text in self._pipeline_checks(self.mesh.pipeline) if wrong]
        if not self.mesh.is_sharded:
            return found
        if self.precision == "fp16":
            found.append(
                "mesh: precision: fp16 scales losses by what one worker sees of the gradient; set bf16 or fp32"
            )
        if self.mesh.half and self.precision == "fp32":
            found.append(
                "mesh: half: true halves nothing with precision: fp32; set precision: bf16, or half: false"
            )
        if self.find_unused_parameters is not None:
            found.append("mesh: find_unused_parameters is for DistributedDataParallel; remove it")
        if self.adversarial is not None:
            found.append(
                "mesh: adversarial training perturbs whole embeddings; remove `mesh` or `adversarial`"
            )
        if self.mesh.tensor > 1 and self.compile:
            found.append("mesh: compile: true does not go with `tensor`; set compile: false")
        return found

    def _pipeline_checks(self, num: int) -> list[tuple[bool, str]]:
        return [
            (
                self.micro_batches < num,
                f"mesh: pipeline: {num} workers wait for each other with fewer than {num} micro-batches; set accumulate to "
                f"at least {num}, got {self.micro_batches}",
            ),
            (
                self.precision == "fp16",
                "mesh: precision: fp16 scales losses by what one worker sees of the gradient; set bf16 or fp32",
            ),
            (self.compile, "mesh: compile: true does not go with `pipeline`; set compile: false"),
            (
                self.balance_tokens,
                "mesh: pipeline: balance_tokens makes micro-batches of other sizes; set balance_tokens: false",
            ),
            (
                self.adversarial is not None,
                "mesh: adversarial training perturbs whole embeddings; remove `mesh` or `adversarial`",
            ),
            (
                self.find_unused_parameters is not None,
                "mesh: find_unused_parameters is for DistributedDataParallel; remove it",
            ),
        ]

    def worker_problems(self) -> list[str]:
        """Returns what is wrong with `processes` and `mesh`, and what of this recipe does not go with them."""
        if self.processes is not None and self.processes < 1:
            return [f"processes must be at least 1, got {self.processes}"]
        if self.least_processes is not None and not 1 <= self.least_processes <= self.num_processes:
            return [
                f"least_processes: from 1 to {self.num_processes}, the number of processes, got {self.least_processes}"
            ]
        return self._problems_now() or [
            f"least_processes: {self.least_processes}: with {fewer.num_processes} processes: {problem}"
            for fewer in self.fewer()
            for problem in fewer._problems_now()[:1]
        ]

    def fewer(self) -> list[Any]:
        """Returns the recipe with each smaller number of processes that it goes on with."""
        numbers = range(self.least_processes or self.num_processes, self.num_processes)
        return [replace(cast(Any, self), processes=num, least_processes=None) for num in numbers]

    def _problems_now(self) -> list[str]:
        found = self._mesh_problems()
        parts = self.num_ranks * self.micro_batches
        if self.processes is not None and parts and self.batch_size % parts:
            found.append(
                f"processes: batch_size must be a multiple of {self.num_ranks} x {self.micro_batches} micro-batches, got "
                f"{self.batch_size}"
            )
        pipeline = self.mesh is not None and self.mesh.pipeline > 1  # which is told that already
        if self.balance_tokens and not pipeline and self.num_ranks != self.num_workers:
            found.append(
                "balance_tokens: batches differ in size, so as many processes as num_workers must read rows; got "
                f"{self.num_ranks} and {self.num_workers}"
            )
        return found
