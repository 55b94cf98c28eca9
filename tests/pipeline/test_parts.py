"""Work whose output comes in parts (`PartsWork`): rows that fail are found as for other work, as long as nothing is out."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from vlpipe.pipeline.engine.worker.guard import Faults, run_guarded
from vlpipe.pipeline.errors import AttemptFailed, RowFault
from vlpipe.pipeline.shard import Out, joined

ROWS = pa.table({"id": ["a", "b", "c", "d"]})


class Halves:
    """Returns its rows one by one; fails at `bad`, before the first part, or at it."""

    def __init__(self, bad: str, *, early: bool) -> None:
        self.bad, self.early = bad, early

    def __call__(self, batch: pa.Table) -> Out:
        return joined([*self.parts(batch)])

    def parts(self, batch: pa.Table) -> Iterator[Out]:
        ids = batch["id"].to_pylist()
        if self.early and self.bad in ids:
            raise RowFault("odd", self.bad)
        for row, id_ in enumerate(ids):
            if id_ == self.bad:
                raise RowFault("odd", self.bad)
            yield Out(batch.slice(row, 1))


def test_parts_come_one_by_one_and_rows_count_once() -> None:
    faults = Faults(10)
    outs = [*run_guarded(Halves("-", early=True), ROWS, faults)]
    assert [out.table["id"].to_pylist() for out in outs] == [["a"], ["b"], ["c"], ["d"]]
    assert faults.num_good == 4


def test_a_row_that_fails_before_the_first_part_is_found() -> None:
    outs = [*run_guarded(Halves("c", early=True), ROWS, Faults(10))]
    assert [i for out in outs for i in out.table["id"].to_pylist()] == ["a", "b", "d"]
    assert [(r.id, r.why) for out in outs for r in out.rejects] == [("c", "odd")]


def test_a_failure_after_a_part_fails_the_attempt() -> None:
    with pytest.raises(
        AttemptFailed, match=r"^the stage failed \(odd\) after a part of its output for a batch$"
    ):
        list(run_guarded(Halves("c", early=False), ROWS, Faults(10)))
