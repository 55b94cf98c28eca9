"""A step while it runs: what is to do, what came out, and whether too many of its rows are faulty."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vlpipe.pipeline.engine.plan import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker.guard import worst
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import StepFailed
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.store import Store


@dataclass
class State:
    """A step while it runs. `todo`: shards whose input is there; `expected`: how many there will be.

    `base`: what all its tasks have in common.
    """

    one: PlannedStep
    todo: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    inputs: dict[int, Shard] = field(default_factory=dict)
    out: dict[int, Receipt] = field(default_factory=dict)
    have: dict[int, Receipt] = field(default_factory=dict)  # receipts found when it opened
    sizes: dict[str, int] = field(default_factory=dict)  # of its files then
    expected: int | None = None
    base: ShardTask | None = None
    opened: bool = False
    num_faults: int = 0
    any_good: bool = False  # a shard has rows, or rejects that are no faults
    _num_rows: int | None = None  # of all its inputs, once they are known
    attempts: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)  # deaths that were not its own

    @property
    def max_reject_rate(self) -> float:
        """Of faults, over all rows of the step."""
        step = self.one.keyed.step
        own = getattr(step.stage, "MAX_REJECT_RATE", 0.0)
        return step.max_reject_rate if step.max_reject_rate is not None else float(own)

    @property
    def num_rows(self) -> int | None:
        """Rows of all inputs; None while steps above are at work."""
        if self._num_rows is None and all(p.is_done for p in self.one.above):
            self._num_rows = sum(p.manifest.rows_out for p in self.one.above if p.manifest)
        return self._num_rows

    @property
    def num_rows_guess(self) -> int:
        """Rows that the step will get, as if all its inputs were as large as the largest that is there."""
        if self._num_rows is not None:
            return self._num_rows
        return (self.expected or 0) * max((s.num_rows for s in self.inputs.values()), default=0)

    def check_rate(self, root: Store) -> None:
        """Fail once more rows are faulty than `max_reject_rate` allows, as soon as that cannot change any more.

        While rows are still to come from above it fails only a step of which nothing but faults has come out.
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
            f"max_reject_rate is {rate}; {worst(reasons)}. "
            f"`vlpipe show {root.path(self.one.folder)}/_rejects` names the rows"
        )
