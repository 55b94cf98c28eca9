"""The loop: what is done once is not done again, what changes runs again, and nothing more."""

from collections import Counter
from pathlib import Path

import pytest
from helpers import CHAIN, left, planned, rejects, rows, run
from toys import payload

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.errors import StepFailed, VlpipeError
from vlpipe.pipeline.storage.store import Store


def test_a_run_leaves_exactly_these_files(tmp_path: Path) -> None:
    steps = run(tmp_path, CHAIN)
    names = {p.partition("-")[0]: set() for p in left(tmp_path / "root") if "/" in p}
    for path in left(tmp_path / "root"):
        if "/" in path:
            names[path.partition("-")[0]].add(path.partition("/")[2])
    shards = {f"{k:06d}.parquet" for k in range(4)} | {f"_receipts/{k:06d}.json" for k in range(4)}
    assert names["scale"] == shards | {"_step.json", "manifest.json", "_shards.parquet"}
    assert names["every"] == names["scale"] | {f"_rejects/{k:06d}.parquet" for k in range(4)}
    assert names["sum"] == {
        *("000000.parquet", "_receipts/000000.json", "_step.json", "manifest.json", "_shards.parquet"),
        *("artifacts/sum.json", "_log/said.txt"),
    }
    assert [p for p in left(tmp_path / "root") if "/" not in p] == ["_format.json", "_steps.json"]
    assert rows(tmp_path, steps["payload"])["n"].to_pylist() == [0, 4, 8, 12, 16]
    assert set(rows(tmp_path, steps["payload"])["total"].to_pylist()) == {0 + 4 + 8 + 12 + 16}


TWICE = """
name: toy
steps:
  numbers: {{use: "toys:Numbers", num_rows: 20, shard_rows: 6}}
  one: {{use: "count_toys:CountCalls", from: numbers, file: {file}}}
  other: {{use: "count_toys:CountCalls", from: numbers, file: {file}}}
  third: {{use: "count_toys:CountCalls", from: one, file: {file}}}
  add: {{use: "toys:AddSum", from: numbers, total: {{from: other, path: sum.json}}}}
"""


def check_twice(folder: Path, address: str | None) -> None:
    calls = folder / "calls"
    steps = run(folder, TWICE.format(file=calls), address=address)
    assert calls.read_text() == "20\n1\n"
    assert rows(folder, steps["one"]) == rows(folder, steps["other"])
    assert rows(folder, steps["add"])["total"].to_pylist() == [190] * 20
    again, _ = planned(folder, TWICE.format(file=calls))
    assert all(one.is_done for one in again)


def test_two_gather_steps_that_compute_the_same_run_once(tmp_path: Path) -> None:
    check_twice(tmp_path, None)


def test_two_gather_steps_that_compute_the_same_run_once_on_ray(tmp_path: Path, two_cpus: str) -> None:
    check_twice(tmp_path, two_cpus)


def test_second_run_does_no_work(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "root").rglob("*.parquet")}
    steps, _ = planned(tmp_path, CHAIN)
    assert all(one.is_done for one in steps)
    run(tmp_path, CHAIN)
    assert before == {
        p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "root").rglob("*.parquet")
    }


def test_a_changed_parameter_runs_its_step_and_what_is_below(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    steps, _ = planned(tmp_path, CHAIN.replace("by: 3", "by: 4"))
    assert {one.name: one.reason for one in steps} == {
        "numbers.rows": "",
        "numbers": "",
        "scale": "parameter by changed 3 -> 4",
        "every": "step 'scale' runs",
        "sum": "step 'every' runs",
        "add": "step 'every' runs",
        "payload": "step 'add' runs",
    }


def test_a_parameter_that_cannot_change_rows_runs_nothing(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    steps, _ = planned(tmp_path, CHAIN.replace("by: 3", "by: 3, seconds: 0.001"))
    assert all(one.is_done for one in steps)


def test_what_changes_above_but_comes_out_the_same_stops_there(tmp_path: Path) -> None:
    """Row 19 is filtered: `sum` runs again over the shorter input, its artifact is the same, nothing below is worked on."""
    calls, number = tmp_path / "calls", tmp_path / "num.txt"
    text = CHAIN.replace("num_rows: 20", f'list: "{number}"')
    text += f'  last: {{use: "toys:Scale", from: payload, by: 7, calls: "{calls}"}}\n'
    number.write_text("20")
    run(tmp_path, text)
    assert len(calls.read_text()) == 5
    number.write_text("19")
    run(tmp_path, text)
    assert len(calls.read_text()) == 5


def test_heavy_columns_are_written_once_and_joined_where_read(tmp_path: Path) -> None:
    steps = run(tmp_path, CHAIN)
    table = rows(tmp_path, steps["payload"], heavy=("payload",))
    assert table["payload"].to_pylist() == [payload(n, 10) for n in (0, 4, 8, 12, 16)]
    assert table["size"].to_pylist() == [len(p) for p in table["payload"].to_pylist()]
    for name in ("scale", "every", "add", "payload"):
        assert "payload" not in rows(tmp_path, steps[name]).schema.names
        assert steps[name].shards[0].holder("payload").path.startswith("numbers-")


def test_a_longer_list_keeps_the_shards_it_shares(tmp_path: Path) -> None:
    calls, number = tmp_path / "calls", tmp_path / "num.txt"
    text = f"""
steps:
  numbers: {{use: "toys:Numbers", list: "{number}", shard_rows: 5}}
  scale: {{use: "toys:Scale", from: numbers, calls: "{calls}"}}
"""
    number.write_text("18")
    run(tmp_path, text)
    assert len(calls.read_text()) == 18
    number.write_text("28")
    steps = run(tmp_path, text)
    assert len(calls.read_text()) == 18 + (
        28 - 15
    )  # three full shards of five are kept, the rest is worked on
    assert rows(tmp_path, steps["scale"], heavy=("payload",))["n"].to_pylist() == list(range(28))


def test_several_inputs_are_one_after_the_other(tmp_path: Path) -> None:
    text = """
steps:
  a: {use: "toys:Numbers", num_rows: 5, shard_rows: 3}
  b: {use: "toys:Numbers", num_rows: 4, shard_rows: 3}
  both: {use: "toys:Scale", from: [a, b], by: 1}
  size: {use: "toys:Payload", from: both}
"""
    steps = run(tmp_path, text)
    assert rows(tmp_path, steps["size"])["n"].to_pylist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert rows(tmp_path, steps["size"], heavy=("payload",))["size"].to_pylist() == [10] * 9


def test_a_stage_that_loses_a_row_fails(tmp_path: Path) -> None:
    text = 'steps:\n  a: {use: "toys:Numbers", num_rows: 5}\n  b: {use: "toys:Loses", from: a}\n'
    with pytest.raises(
        VlpipeError,
        match=r"^shard 0 of step 'b': the stage breaks row conservation: 1 row\(s\) lost \(first: id0\)",
    ):
        run(tmp_path, text)


@pytest.mark.slow
def test_rows_that_fail_alone_become_rejects_and_nothing_else_is_lost(tmp_path: Path) -> None:
    bad = sorted({(i * 7919) % 20_000 for i in range(198)})
    text = f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 20000, shard_rows: 5000}}
  b: {{use: "toys:Breaks", from: a, bad: {bad}, passing: [1, 2, 3], typed: true}}
"""
    steps = run(tmp_path, text)
    assert steps["b"].manifest is not None
    assert steps["b"].manifest.rows_out == 20_000 - 198 == 19_802
    found = rejects(tmp_path, steps["b"])
    assert [r["id"] for r in found] == [f"id{n}" for n in bad]
    assert {(r["stage"], r["kind"], r["why"]) for r in found} == {("b", "fault", "odd")}
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(20_000) if n not in set(bad)]


def test_too_many_faults_fail_the_step_and_name_the_worst_reasons(tmp_path: Path) -> None:
    text = f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 2000}}
  b: {{use: "toys:Breaks", from: a, bad: {list(range(198))}, max_reject_rate: 0.2}}
"""
    run(tmp_path, text)  # 9.9 % is under 20 %
    with pytest.raises(
        StepFailed, match=r"more than 100 rows of one shard failed; most frequent reasons: error_ValueError"
    ):
        run(tmp_path, text.replace("0.2", "0.05").replace("[0, 1,", "[1,"))


def test_a_rate_that_fails_over_all_shards_fails_the_step(tmp_path: Path) -> None:
    text = f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 100, shard_rows: 10}}
  b: {{use: "toys:Breaks", from: a, bad: {list(range(0, 100, 10))}, max_reject_rate: 0.05}}
"""
    with pytest.raises(
        StepFailed,
        match=r"rows failed, more than max_reject_rate 0.05 allows; most frequent reasons: error_ValueError x ",
    ):
        run(tmp_path, text)


def test_a_fault_of_the_machine_is_nobodys_row(tmp_path: Path) -> None:
    text = 'steps:\n  a: {use: "toys:Numbers", num_rows: 5}\n  b: {use: "toys:Breaks", from: a, bad: [2], memory: true}\n'
    with pytest.raises(StepFailed, match=r"shard 0 of step 'b' failed: MemoryError: no memory"):
        run(tmp_path, text)
    assert not list((tmp_path / "root").glob("b-*/_rejects"))


def test_shards_are_taken_when_their_input_is_there_downstream_first(tmp_path: Path) -> None:
    order: list[tuple[str, int]] = []
    steps, store = planned(tmp_path, CHAIN)
    watcher = Watcher(shard=lambda one, receipt, reused: order.append((one.name, receipt.index)))
    new_run(steps, store, local_executor(), watcher).go()
    assert order[:6] == [
        ("numbers", 0),
        ("scale", 0),
        ("every", 0),
        ("numbers", 1),
        ("scale", 1),
        ("every", 1),
    ]


def test_a_root_on_an_object_store_gives_the_same_rows(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(CHAIN)
    from vlpipe.pipeline.engine.plan import plan
    from vlpipe.pipeline.workflow.load import Workflow

    store = Store("memory://root")
    steps = plan(Workflow.load(str(file)), store)
    new_run(steps, store, local_executor(), Watcher()).go()
    local = run(tmp_path, CHAIN)
    assert [s.digest for s in steps[-1].shards] == [s.digest for s in local["payload"].shards]
    again = plan(Workflow.load(str(file)), store)
    assert all(one.is_done for one in again)


def test_ids_are_counted_not_only_listed() -> None:
    from vlpipe.pipeline.parquet.row_conservation import check_conserved

    check_conserved("x", Counter("aab"), Counter("ab"), Counter("a"))
    with pytest.raises(VlpipeError, match=r"x breaks row conservation: 1 row\(s\) too many \(first: b\)"):
        check_conserved("x", Counter("ab"), Counter("abb"), Counter())


def test_work_that_waits_for_the_world_is_told_of_batches_ahead(tmp_path: Path) -> None:
    text = """
steps:
  numbers: {use: "toys:Numbers", num_rows: 18, shard_rows: 18}
  groups: {use: "toys:Told", name: whole, from: numbers}
  told: {use: "toys:Told", name: told, from: groups}
"""
    told = rows(tmp_path, run(tmp_path, text)["told"])
    assert told["whole"].to_pylist() == [18] * 18
    assert told["told"].to_pylist() == [12] * 4 + [16] * 4 + [18] * 10
    assert told["n"].to_pylist() == list(range(18))
