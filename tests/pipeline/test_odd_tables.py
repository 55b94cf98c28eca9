"""What a source or a gather stage emits is made what it declared, or refused with a sentence; and no row gets lost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from helpers import rejects, rows, run
from odd_toys import N, table

from vlpipe.pipeline.engine.worker.gather import GatherTask, run_gather
from vlpipe.pipeline.engine.worker_hooks import WorkerHooks
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.parquet.conform import conform
from vlpipe.pipeline.parquet.row_conservation import IdHashes, check_conserved_large
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import dataset

RIGHT = [
    "plain",
    "one_by_one",
    "no_rows",
    "other_order",
    "more_columns",
    "dictionary",
    "large_string",
    "view",
]


def emits(what: str, more: str = "") -> str:
    return f'steps:\n  a: {{use: "odd_toys:Emits", what: {what}{more}}}'


def test_all_spellings_of_the_same_rows_give_the_same_shard(tmp_path: Path) -> None:
    digests = {}
    for what in [*RIGHT, "small_ints", "batch"]:
        (tmp_path / what).mkdir()
        (receipt,) = run(tmp_path / what, emits(what))["a"].receipts
        digests[what] = receipt.shard.digest
    assert set(digests.values()) == {digests["plain"]}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", r"^step a: declared column\(s\) \['n'\] are missing from the rows; they have \['id'\]"),
        ("no_table", r"^step a returned list; wanted a pyarrow.Table with columns \['id', 'n'\]"),
        ("twice", r"^step a: column\(s\) \['n'\] occur more than once"),
        ("text", "^step 'a': column 'n' is string and cannot be cast to int64"),
        ("invalid", "^step 'a': column 'id' has invalid values: Invalid UTF8 sequence at string index 1$"),
        ("same_ids", "^step 'a': shard 0: id 'id0' occurs 3 times and 1 more ids"),
        ("null_id", r"^step 'a': shard 0: 1 row\(s\) have no id"),
    ],
)
def test_others_are_refused(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(VlpipeError, match=said):
        run(tmp_path, emits(what))


def test_a_reject_of_a_gather_stage_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        VlpipeError, match=r"^step 'a': job.reject got Reject\(id=None.*; wanted Reject\(id, 'fault' or"
    ):
        run(tmp_path, emits("plain", ", num_rejects: 1, odd_reject: true"))


def test_rejects_of_a_gather_stage_are_written_as_they_come(tmp_path: Path) -> None:
    steps = run(tmp_path, emits("plain", ", num_rejects: 2000"))
    found = rejects(tmp_path, steps["a"])
    assert [r["id"] for r in found] == [f"r{k}" for k in range(2000)]
    assert {(r["stage"], r["why"], r["detail"]) for r in found} == {("a", "odd", r"\udcff")}
    assert steps["a"].manifest is not None
    assert steps["a"].manifest.rejects == {"fault:odd": 2000}


@pytest.mark.slow
def test_rows_that_come_one_by_one_take_linear_time(tmp_path: Path) -> None:
    seconds = []
    for num in (1_000, 8_000):
        ids = json.dumps([f"id{n}" for n in range(num)])
        text = f'steps:\n  a: {{use: "odd_toys:Ids", ids: {ids}, per_table: 1, shard_rows: 100000}}'
        (tmp_path / str(num)).mkdir()
        began = time.process_time()
        steps = run(tmp_path / str(num), text)
        seconds.append(time.process_time() - began)
        assert rows(tmp_path / str(num), steps["a"])["n"].to_pylist() == list(range(num))
    assert seconds[1] < 20 * seconds[0]  # 64 times as long if it were quadratic


@dataclass(frozen=True, kw_only=True)
class Keeps(GatherStage):
    """Emits the rows in but those at `lost`, and those at `twice` twice; rejects those at `rejected`."""

    CONSERVES: ClassVar[bool] = True

    lost: tuple[int, ...]
    twice: tuple[int, ...]
    rejected: tuple[int, ...]

    def run(self, job: Job) -> None:
        ns = [n for one in job.inputs for batch in one.batches(["n"]) for n in batch["n"].to_pylist()]
        for n in ns:
            if n in self.rejected:
                job.reject([Reject(f"id{n}", "filtered", "odd")])
            elif n not in self.lost:
                job.emit(table([n]))
                if n in self.twice:
                    job.emit(table([n]))


@pytest.mark.parametrize(
    ("lost", "twice", "rejected", "said"),
    [
        ((), (), (3, 4), ""),
        ((5,), (), (3,), r"^the stage breaks row conservation: 1 row\(s\) lost \(first: id5\)"),
        ((), (6, 8), (), r"2 row\(s\) too many \(first: id6\)"),
        ((1, 2), (9,), (3,), r"2 row\(s\) lost \(first: id1\) and 1 row\(s\) too many \(first: id9\)"),
    ],
)
def test_a_gather_stage_that_conserves_its_rows_is_held_to_it(
    tmp_path: Path, lost: Any, twice: Any, rejected: Any, said: str
) -> None:
    task = GatherTask(
        hooks=WorkerHooks(),
        store=Store(str(tmp_path)),
        step="g",
        stage=Keeps(lost=lost, twice=twice, rejected=rejected),
        inputs=(dataset(tmp_path, table(list(range(10))), shard_rows=4),),
        schema_out=N,
        folder="g-0",
        inputs_digest="0" * 64,
        shard_rows=1,  # so that a row that comes twice is in two shards
    )
    if not said:
        assert sum(r.shard.num_rows for r in run_gather(task).receipts) == 8
        return
    with pytest.raises(VlpipeError, match=said):
        run_gather(task)


def test_conservation_counts_and_takes_bytes_not_objects() -> None:
    rejected = IdHashes()
    rejected.add(["b"])
    check_conserved_large("x", lambda: iter([["a", "b"], ["a"]]), lambda: iter([["a", "a"]]), rejected)
    with pytest.raises(VlpipeError, match=r"x breaks row conservation: 1 row\(s\) lost \(first: a\)"):
        check_conserved_large("x", lambda: iter([["a", "b"], ["a"]]), lambda: iter([["a"]]), rejected)
    many = IdHashes()
    many.add(str(n) for n in range(100_000))
    assert many.sorted().nbytes == 800_000


def test_nested_odd_types_become_what_is_declared() -> None:
    schema = pa.schema([("t", pa.list_(pa.struct([("a", pa.string()), ("b", pa.int64())])))])
    odd = pa.list_(pa.struct([("b", pa.int8()), ("a", pa.string_view())]))
    made = conform(pa.table({"t": pa.array([[{"a": "x", "b": 1}], None, []], odd)}), schema, "x")
    assert made["t"].to_pylist() == [[{"a": "x", "b": 1}], None, []]
    with pytest.raises(SchemaError, match=r"x returned dict; wanted a pyarrow\.Table"):
        conform({"t": [[]]}, schema, "x")
