"""State of a running step: pending shards, results, and whether too many of its rows failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker.guard import worst
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import StepFailed
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.stage import MapStage
from vlpipe.pipeline.storage.store import Store


@dataclass
class State:
    """State of a running step. expected: number of shards in total; None if not known yet.

    todo: numbers of shards that may start now, as their input exists; -1 for a gather step. out: receipts of finished
    shards; base: a task with the fields that all its tasks share.
    """

    one: PlannedStep
    todo: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    inputs: dict[int, Shard] = field(default_factory=dict)
    out: dict[int, Receipt] = field(default_factory=dict)
    have: dict[int, Receipt] = field(default_factory=dict)  # receipts found on disk when it opened
    sizes: dict[str, int] = field(default_factory=dict)  # file name -> bytes, when it opened
    expected: int | None = None
    base: ShardTask | None = None
    opened: bool = False
    gathers: tuple[str, str] | None = (
        None  # of a gather step whose inputs are done: stage key, digest of the inputs
    )
    num_faults: int = 0
    any_good: bool = False  # some row was returned or filtered, so not all are faults
    _num_rows: int | None = None  # rows of all its inputs, once known
    attempts: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)  # deaths that the shard did not cause

    @property
    def max_reject_rate(self) -> float:
        """Max fraction of the step's rows that may be faults."""
        step = self.one.keyed.step
        if step.max_reject_rate is not None:
            return step.max_reject_rate
        return step.stage.MAX_REJECT_RATE if isinstance(step.stage, MapStage) else 0.0

    @property
    def num_rows(self) -> int | None:
        """Number of rows of all inputs; None until all upstream steps are done."""
        if self._num_rows is None and all(p.is_done for p in self.one.above):
            self._num_rows = sum(p.manifest.rows_out for p in self.one.above if p.manifest)
        return self._num_rows

    @property
    def num_rows_guess(self) -> int:
        """Estimated number of input rows, as if every input shard were as large as the largest one so far."""
        if self._num_rows is not None:
            return self._num_rows
        return (self.expected or 0) * max((s.num_rows for s in self.inputs.values()), default=0)

    def check_rate(self, root: Store) -> None:
        """Raises StepFailed as soon as it is certain that more rows are faults than `max_reject_rate` allows.

        While upstream steps still run, this fails only a step that has produced nothing but faults.
        """
        if not self.num_faults:
            return
        rate, known = self.max_reject_rate, self.num_rows
        num_rows = self.num_rows_guess if known is None else known
        if self.num_faults <= rate * num_rows or (known is None and self.any_good):
            return
        reasons: Counter[str] = Counter()
        for receipt in self.out.values():
            reasons.update(
                {c.partition(":")[2]: n for c, n in receipt.rejects.items() if c.startswith("fault:")}
            )
        raise StepFailed(
            f"step {self.one.name!r}: {self.num_faults} of {num_rows} rows failed, "
            f"more than max_reject_rate {rate} allows; {worst(reasons)}. "
            f"`vlpipe show {root.path(self.one.folder)}/_rejects` names the rows"
        )
