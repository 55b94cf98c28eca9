"""Pools of actors on a cluster of two CPUs: who gets a CPU, who lets go, and that nothing waits for ever."""

from pathlib import Path

import pytest
from helpers import left, rejects, rows, run

TIMED = '{{use: "toys:{use}", from: {above}, seconds: 0.2, times: "{folder}/{name}.txt", meets: "{meets}"}}'


def workflow(
    folder: Path, *steps: tuple[str, str], end: str = "", meets: str = "", num: int = 60, shard_rows: int = 5
) -> str:
    """`numbers` in 12 shards, and below it one timed step after the other: (name, class).

    The last 4 shards of the first step wait until the file `meets` is there.
    """
    numbers = f'{{use: "toys:Numbers", num_rows: {num}, shard_rows: {shard_rows}}}'
    text, above = f"steps:\n  numbers: {numbers}\n", "numbers"
    for name, use in steps:
        text += f"  {name}: {TIMED.format(use=use, above=above, folder=folder, name=name, meets=meets)}\n"
        above, meets = name, ""
    return text + end


def times(folder: Path, name: str) -> list[tuple[float, float]]:
    lines = (folder / f"{name}.txt").read_text().splitlines()
    return sorted((float(began), float(ended)) for began, ended in map(str.split, lines))


def num_overlaps(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> int:
    return sum(a < d and c < b for a, b in one for c, d in other)


@pytest.mark.slow
def test_pools_take_every_cpu_once_no_task_can_come_and_let_go_for_training(
    tmp_path: Path, two_cpus: str
) -> None:
    """Two pools work side by side on two CPUs; the two training workers after them need both."""
    end = '  train: {use: "toys:Launches", from: b, num_workers: 2}\n'
    meets = f"{tmp_path}/b.txt"
    text = workflow(tmp_path, ("a", "TimedInActor"), ("b", "TimedInActor"), end=end, meets=meets)
    steps = run(tmp_path, text, address=two_cpus)
    assert num_overlaps(times(tmp_path, "a"), times(tmp_path, "b")) > 0
    assert rows(tmp_path, steps["train"])["n"].to_pylist() == [7]


@pytest.mark.slow
def test_a_task_between_two_pools_is_not_starved(tmp_path: Path, two_cpus: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    names = ("a", "TimedInActor"), ("between", "Timed"), ("b", "TimedInActor")
    text = workflow(tmp_path, *names, meets=f"{tmp_path}/between.txt")
    for folder in (here, there):
        folder.mkdir()
    run(there, workflow(tmp_path))  # so that `a` never waits for rows
    run(there, text, address=two_cpus)
    a, between, b = (times(tmp_path, name) for name, _ in names)
    assert num_overlaps(a, between) > 0
    assert num_overlaps(a, b) == 0
    run(here, text)
    assert left(there / "root") == left(here / "root")


@pytest.mark.slow
def test_a_row_that_kills_an_actor_is_found_while_its_pool_holds_every_cpu(
    tmp_path: Path, two_cpus: str
) -> None:
    """The process that isolates the row needs a CPU too: it gets its actor's."""
    step = (
        '{use: "toys:BreaksInActor", from: numbers, kills: [2], max_reject_rate: 0.2, resources: {cpus: 2}}'
    )
    text = workflow(tmp_path, end=f"  b: {step}\n", num=12, shard_rows=3)
    steps = run(tmp_path, text, address=two_cpus)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(12) if n != 2]
    assert [(r["id"], r["why"]) for r in rejects(tmp_path, steps["b"])] == [("id2", "killed_worker")]


@pytest.mark.slow
def test_three_neighbours_that_each_kill_their_actor_end_well(tmp_path: Path, two_cpus: str) -> None:
    """Who dies with another shard has not had an attempt."""
    step = '{use: "toys:BreaksInActor", from: numbers, kills: [1, 2, 4], max_reject_rate: 0.5}'
    text = workflow(tmp_path, end=f"  b: {step}\n", num=12, shard_rows=2)
    steps = run(tmp_path, text, address=two_cpus)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(12) if n not in (1, 2, 4)]
    found = [(r["id"], r["why"]) for r in rejects(tmp_path, steps["b"])]
    assert found == [("id1", "killed_worker"), ("id2", "killed_worker"), ("id4", "killed_worker")]


@pytest.mark.slow
def test_a_pool_works_beside_the_tasks_that_feed_it(tmp_path: Path, two_cpus: str) -> None:
    """Were both CPUs taken by what feeds it, its last tasks would wait in vain."""
    steps = ("fetch", "Timed"), ("caption", "TimedInActor")
    run(tmp_path, workflow(tmp_path, *steps, meets=f"{tmp_path}/caption.txt"), address=two_cpus)
    assert num_overlaps(times(tmp_path, "fetch"), times(tmp_path, "caption")) > 0


@pytest.mark.slow
def test_a_gather_step_starts_while_another_branch_has_work(tmp_path: Path, two_cpus: str) -> None:
    end = f"""  short: {{use: "toys:Numbers", num_rows: 1}}
  gather: {{use: "toys:OnlyArtifact", from: short, touches: {tmp_path}/gathered}}
"""
    text = workflow(tmp_path, ("long", "Timed"), meets=f"{tmp_path}/gathered", end=end)
    steps = run(tmp_path, text, address=two_cpus)
    assert rows(tmp_path, steps["long"]).num_rows == 60


@pytest.mark.slow
def test_a_gpu_is_there_only_for_a_step_that_asks_for_one(tmp_path: Path, two_cpus: str) -> None:
    gpu = "resources: {gpus: 1, memory_gb: 0.25}"
    text = f"""steps:
  numbers: {{use: "toys:Numbers", num_rows: 2}}
  without: {{use: "toys:Placed", from: numbers}}
  with: {{use: "toys:Placed", from: numbers, {gpu}}}
  actor_without: {{use: "toys:PlacedInActor", from: numbers}}
  actor_with: {{use: "toys:PlacedInActor", from: numbers, {gpu}}}
"""
    steps = run(tmp_path, text, address=two_cpus)
    for name, placed in {"without": ["", "cpu", 0], "with": ["0", "cuda", 2**28]}.items():
        for one in (steps[name], steps[f"actor_{name}"]):
            table = rows(tmp_path, one).select(["visible", "device", "memory"])
            assert [*table.slice(0, 1).to_pylist()[0].values()] == placed, one.name
