"""One bad value never ends a step: it is its row's reject, or it is stored as a file can hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import rejects, rows, run
from test_bad_input import vlpipe

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.errors import SchemaError, StepFailed, VlpipeError


def over(step: str, num: int = 20, more: str = "") -> str:
    return f"""
steps:
  a: {{use: "toys:Numbers", num_rows: {num}, shard_rows: 10}}
  b: {{{step}, from: a, max_reject_rate: 0.2{more}}}
"""


def column(what: str, kind: str, odd: str = "[3]") -> str:
    return over(f'use: "odd_toys:Column", what: {what}, type: {kind}, odd: {odd}')


def receipts(root: Path, one: PlannedStep) -> list[Any]:
    return [json.loads(p.read_text()) for p in sorted((root / "root" / one.folder / "_receipts").iterdir())]


def log(folder: Path, one: PlannedStep, name: str) -> str:
    return (folder / "root" / one.folder / "_log" / name).read_text()


@pytest.mark.parametrize("what", ["inf", "minus_inf", "nan"])
@pytest.mark.parametrize("odd", ["[3]", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"])
def test_statistics_leave_out_what_is_not_finite(tmp_path: Path, what: str, odd: str) -> None:
    steps = run(tmp_path, column(what, "float64", odd))
    (first, second) = (r["columns"]["x"] for r in receipts(tmp_path, steps["b"]))
    all_odd = len(odd) > 3
    assert first == {"nulls": 0, "not_finite": 10 if all_odd else 1} | (
        {} if all_odd else {"min": 0.0, "max": 0.0}
    )
    assert second == {"nulls": 0, "min": 0.0, "max": 0.0}
    assert len(rows(tmp_path, steps["b"])) == 20


def test_statistics_of_half_floats(tmp_path: Path) -> None:
    steps = run(tmp_path, column("half", "float16"))
    assert receipts(tmp_path, steps["b"])[0]["columns"]["x"] == {
        "nulls": 0,
        "not_finite": 1,
        "min": 0.5,
        "max": 0.5,
    }


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("text", "int64", "column 'x' is string and cannot be cast to int64"),
        ("large", "int32", "cannot be cast to int32: Integer value 1099511627776 not in range"),
        ("fraction", "int64", "was truncated converting to int64"),
        ("invalid", "string", "Invalid UTF8"),
    ],
)
def test_a_value_that_is_not_of_the_declared_type_is_its_rows_reject(
    tmp_path: Path, what: str, kind: str, said: str
) -> None:
    steps = run(tmp_path, column(what, kind, "[3, 14]"))
    found = rejects(tmp_path, steps["b"])
    assert [(r["id"], r["kind"], r["why"]) for r in found] == [
        ("id3", "fault", "bad_value"),
        ("id14", "fault", "bad_value"),
    ]
    assert all(said in r["detail"] for r in found)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(20) if n not in (3, 14)]


def test_text_that_cannot_be_encoded_is_its_rows_reject(tmp_path: Path) -> None:
    steps = run(tmp_path, column("surrogate", "string"))
    (found,) = rejects(tmp_path, steps["b"])
    assert (found["id"], found["why"]) == ("id3", "error_UnicodeEncodeError")


@pytest.mark.parametrize("what", ["views", "dictionary", "large_string"])
def test_other_spellings_of_text_are_cast(tmp_path: Path, what: str) -> None:
    steps = run(tmp_path, column(what, "string"))
    assert rows(tmp_path, steps["b"])["x"].to_pylist() == ["a"] * 20


@pytest.mark.parametrize(
    ("what", "why", "detail"),
    [
        ("key", "error_KeyError", "'colour' (odd_toys.py:"),
        ("surrogate", "error_ValueError", r"no such file: caf\udce9.jpg (odd_toys.py:"),
        ("control", r"odd\x00code", r"a\x1b[31m\x00\ud800b"),
        ("long", "error_ValueError", "x" * 450),
        ("no_text", "error_Odd", "(no text: Odd.__str__ raises RuntimeError)"),
        ("exit", "error_SystemExit", "3 (odd_toys.py:"),
        ("panic", "error_PanicException", "index out of range"),
        ("recursion", "error_RecursionError", "maximum recursion depth"),
        ("nothing", "missing_columns", "returned NoneType; wanted a pyarrow.Table"),
        ("column_lost", "missing_columns", "declared column(s) ['n'] are missing"),
        ("counts", "error_TypeError", "Out.counts holds {'n': nan}; wanted whole numbers"),
        ("reject_of_none", "error_TypeError", "Out.rejects holds Reject(id=None"),
    ],
)
def test_whatever_a_row_makes_the_stage_do_is_its_reject(
    tmp_path: Path, what: str, why: str, detail: str
) -> None:
    steps = run(tmp_path, over(f'use: "odd_toys:Raises", what: {what}, bad: [13]'))
    (found,) = rejects(tmp_path, steps["b"])
    assert (found["id"], found["kind"], found["why"]) == ("id13", "fault", why)
    assert found["detail"].startswith(detail) or detail in found["detail"]
    assert len(found["detail"]) <= 500
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(20) if n != 13]


@pytest.mark.slow
def test_it_is_also_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The exception has to come from there, where it cannot be pickled too."""
    whats = ["key", "no_text", "exit", "panic", "counts"]
    lines = [
        f'  b{k}: {{use: "odd_toys:Raises", what: {what}, bad: [{k}], from: {f"b{k - 1}" if k else "a"}, '
        "row_group_timeout_s: 60, max_reject_rate: 0.5}"
        for k, what in enumerate(whats)
    ]
    text = 'steps:\n  a: {use: "toys:Numbers", num_rows: 6}\n' + "\n".join(lines)
    steps = run(tmp_path, text)
    found = [rejects(tmp_path, steps[f"b{k}"]) for k in range(5)]
    assert [(r["id"], r["why"]) for (r,) in found] == [
        ("id0", "error_KeyError"),
        ("id1", "error_Odd"),
        ("id2", "error_SystemExit"),
        ("id3", "error_PanicException"),
        ("id4", "error_TypeError"),
    ]
    assert found[0][0]["detail"].startswith("'colour' (odd_toys.py:")
    assert "KeyError: 'colour'" in log(tmp_path, steps["b0"], "000000.errors.txt")


def test_a_stage_without_a_declared_column_is_told_at_once(tmp_path: Path) -> None:
    text = over(f'use: "odd_toys:Raises", what: column_lost, bad: {list(range(20))}')
    with pytest.raises(SchemaError, match=r"step b, shard 0: declared column\(s\) \['n'\] are missing"):
        run(tmp_path, text)


def test_what_a_stage_says_of_its_rows_is_stored_as_files_can_hold_it(tmp_path: Path) -> None:
    steps = run(tmp_path, over('use: "odd_toys:Says"'))
    found = rejects(tmp_path, steps["b"])
    assert [(r["id"], r["why"]) for r in found] == [("id0", r"odd\ud800"), ("id10", r"odd\ud800")]
    assert found[0]["detail"].startswith(r"\x00\udcffyyy")
    assert len(found[0]["detail"]) == 2_000
    (line,) = log(tmp_path, steps["b"], "000000.jsonl").splitlines()
    told = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {str(one) for one in told.pop("1")} == {"2.5", "b'x'"}
    assert told == {"id": "id0", "inf": "inf", "text": r"\udcff", "n": 3}
    assert receipts(tmp_path, steps["b"])[0]["counts"] == {"rows": 1, r"\udcff": 1}


# Ids.


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ("[a, b, a, c, b, a]", "id 'a' occurs 3 times and 1 more ids occur more than once"),
        ("[a, null, b, null]", r"2 row\(s\) have no id \(null\)"),
        ('[a, "", b]', r"1 row\(s\) have an empty id"),
    ],
)
def test_listed_rows_need_an_id_of_their_own(tmp_path: Path, ids: str, said: str) -> None:
    text = f'steps:\n  a: {{use: "odd_toys:Ids", ids: {ids}}}'
    with pytest.raises(VlpipeError, match=rf"^step 'a\.rows': shard 0: {said}"):
        run(tmp_path, text)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("twice", "id 'id0' occurs 2 times and 9 more ids"),
        ("across", "id '0-False' occurs 9 times"),
        ("none", r"10 row\(s\) have no id"),
        ("empty", r"10 row\(s\) have an empty id"),
        ("orphan", r"10 row\(s\) have no parent \(null\). Each row needs the id of an input row as parent"),
    ],
)
def test_children_need_an_id_of_their_own(tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(VlpipeError, match=f"^shard 0 of step 'b': {said}"):
        run(tmp_path, over(f'use: "odd_toys:Children", how: {how}'))


def test_a_child_with_a_bad_value_is_its_parents_reject(tmp_path: Path) -> None:
    steps = run(tmp_path, over('use: "odd_toys:Children", how: overflow'))
    (found,) = rejects(tmp_path, steps["b"])
    assert (found["id"], found["why"]) == ("id3", "bad_value")
    parents = rows(tmp_path, steps["b"])["parent"].to_pylist()
    assert parents == [f"id{n}" for n in range(20) for _ in range(2) if n != 3]


# Where the bad rows lie does not matter.


@pytest.mark.slow
@pytest.mark.parametrize(("first", "num_bad"), [(4_200, 20), (0, 100)])
def test_clustered_bad_rows_below_the_rate_do_not_end_the_step(
    tmp_path: Path, num_bad: int, first: int
) -> None:
    bad = list(range(first, first + num_bad))
    steps = run(
        tmp_path,
        f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 10000, shard_rows: 100}}
  s: {{use: "toys:Scale", from: a}}
  b: {{use: "odd_toys:Raises", what: key, bad: {bad}, from: s, max_reject_rate: 0.05}}
""",
    )
    assert [r["id"] for r in rejects(tmp_path, steps["b"])] == [f"id{n}" for n in bad]
    assert len(rows(tmp_path, steps["b"])) == 10_000 - num_bad


@pytest.mark.slow
def test_a_stage_that_fails_on_every_row_is_found_out(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    text = f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 20000, shard_rows: 200}}
  s: {{use: "toys:Scale", from: a}}
  b: {{use: "odd_toys:Raises", what: key, bad: {list(range(20000))}, from: s, max_reject_rate: 0.01, calls: {calls}}}
"""
    with pytest.raises(
        StepFailed,
        match=r"rows failed, more than max_reject_rate 0.01 allows; most frequent reasons: error_KeyError",
    ):
        run(tmp_path, text)
    assert len(set(calls.read_text().split())) == 400  # two shards prove that more than 200 of 20,000 fail


def test_a_batch_with_many_bad_rows_is_run_row_by_row(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    bad = list(range(0, 512, 2))
    run(
        tmp_path,
        f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 512}}
  b: {{use: "odd_toys:Raises", what: key, bad: {bad}, from: a, max_reject_rate: 0.6, calls: {calls}}}
""",
    )
    assert (
        len(calls.read_text().split()) < 12 * 512
    )  # halving alone takes log2(512) = 9 times each, and the bad ones twice


# What is kept for who writes the stage.


def test_the_first_traceback_of_each_code_is_kept(tmp_path: Path) -> None:
    steps = run(tmp_path, over('use: "odd_toys:Raises", what: key, bad: [3, 4]'))
    text = log(tmp_path, steps["b"], "000000.errors.txt")
    assert text.startswith("error_KeyError\nTraceback (most recent call last):")
    assert text.count("KeyError: 'colour'") == 1
    assert 'odd_toys.py", line' in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "flags"), [("", ["--local"]), (", row_group_timeout_s: 60", ["--local"]), ("", [])]
)
def test_what_a_stage_prints_is_kept_and_not_shown(tmp_path: Path, more: str, flags: list[str]) -> None:
    (tmp_path / "w.yaml").write_text(over('use: "odd_toys:Says"', more=more))
    code, said = vlpipe("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), *flags)
    assert (code, "printed" in said, "logged" in said, "warns" in said) == (0, False, False, False)
    (found,) = (tmp_path / "root").glob("b-*/_log/000000.txt")
    text = found.read_text()
    assert r"printed \x1b[31m of id0" in text
    assert "logged" in text
    assert "UserWarning: a library warns" in text


@pytest.mark.slow
def test_a_row_group_that_takes_too_long_is_narrowed_down_to_its_row(tmp_path: Path) -> None:
    more = ", row_group_timeout_s: 1.5"
    step = 'use: "odd_toys:Raises", what: sleeps, bad: [3], seconds: 60'
    steps = run(tmp_path, over(step, num=8, more=more))
    (found,) = rejects(tmp_path, steps["b"])
    assert (found["id"], found["why"], found["detail"]) == (
        "id3",
        "deadline",
        "the stage was not done with the row after 1.5 s",
    )
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [0, 1, 2, 4, 5, 6, 7]


# A stage that asks the world.


def test_a_stage_that_asks_the_world_is_not_run_again_because_of_a_row(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    text = over(f'use: "odd_toys:AsksWorld", what: key, bad: [3], calls: {calls}')
    with pytest.raises(
        StepFailed, match=r"a batch of 10 rows failed with error_KeyError \('colour' \(odd_toys.py:\d+\)\)"
    ):
        run(tmp_path, text)
    asked = calls.read_text().split()
    assert asked == [str(n) for n in range(10)] * 3  # three attempts at the shard, each row once in each


def test_a_deadline_for_it_is_refused(tmp_path: Path) -> None:
    text = over('use: "odd_toys:AsksWorld", what: key', more=", row_group_timeout_s: 5")
    with pytest.raises(VlpipeError, match=r"b\.row_group_timeout_s: AsksWorld has its own deadlines"):
        run(tmp_path, text)


def test_strict_json_of_anything() -> None:
    from vlpipe.pipeline.storage.storable import storable_json

    deep: list[Any] = []
    deep.append(deep)
    told = storable_json({"a": [1, np.float32("nan")], "b": deep, ("c",): pa.scalar(1)})
    json.dumps(told, allow_nan=False, sort_keys=True)
    assert told["a"] == [1, "nan"]


@pytest.mark.slow
def test_deadlines_hold_on_ray_too(tmp_path: Path, two_cpus: str) -> None:
    step = "what: sleeps, seconds: 600, from: a, max_reject_rate: 0.3, row_group_timeout_s: 3"
    text = f"""
steps:
  a: {{use: "toys:Numbers", num_rows: 4}}
  task: {{use: "odd_toys:Raises", bad: [3], {step}}}
  actor: {{use: "odd_toys:RaisesInActor", bad: [2], {step}}}
"""
    steps = run(tmp_path, text, address=two_cpus)
    for name, bad in {"task": 3, "actor": 2}.items():
        assert [(r["id"], r["why"]) for r in rejects(tmp_path, steps[name])] == [(f"id{bad}", "deadline")]
        assert rows(tmp_path, steps[name])["n"].to_pylist() == [n for n in range(4) if n != bad]
