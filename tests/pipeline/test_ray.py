"""On Ray: the same bytes as in one process, and what happens when processes die."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import CHAIN, left, planned, rejects, rows, run
from ray_clusters import free_ports, home_with_token, ray_head

from vlpipe.pipeline.engine.locking.lock import holder_run, processes_of
from vlpipe.pipeline.engine.on_ray.worker import _launch
from vlpipe.pipeline.errors import StepFailed, VlpipeError
from vlpipe.pipeline.steps.step import Resources
from vlpipe.pipeline.storage.store import Store

KILLS = """
steps:
  a: {use: "toys:Numbers", num_rows: 12, shard_rows: 6}
  b: {use: "toys:Breaks", from: a, kills: [4], max_reject_rate: 0.2}
"""
SLOW = """
name: slow
steps:
  numbers: {use: "toys:Numbers", num_rows: 60, shard_rows: 5}
  scale: {use: "toys:Scale", from: numbers, seconds: 0.1}
  payload: {use: "toys:Payload", from: scale}
  sum: {use: "toys:Sum", from: payload}
"""


def test_ray_and_local_give_the_same_bytes(tmp_path: Path) -> None:
    text = CHAIN + '  launch: {use: "toys:Launches", from: payload}\n'
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    run(here, text)
    run(there, text, ray=True)
    assert left(there / "root").keys() - left(here / "root").keys() == set()
    assert left(there / "root") == left(here / "root")


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_found_and_named(tmp_path: Path, two_cpus: str) -> None:
    steps = run(tmp_path, KILLS, address=two_cpus)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(12) if n != 4]
    assert [(r["id"], r["kind"], r["why"]) for r in rejects(tmp_path, steps["b"])] == [
        ("id4", "fault", "killed_worker")
    ]


@pytest.mark.slow
def test_weights_that_cannot_be_loaded_are_the_steps_error_and_no_rows(tmp_path: Path, two_cpus: str) -> None:
    text = 'steps:\n  a: {use: "toys:Numbers", num_rows: 5}\n  b: {use: "toys:Unopenable", from: a}\n'
    with pytest.raises(
        StepFailed, match=r"shard 0 of step 'b' failed: ValueError: the weights are of another model"
    ):
        run(tmp_path, text, address=two_cpus)
    assert not list((tmp_path / "root").glob("b-*/_rejects"))


def test_a_stage_launches_no_more_workers_than_it_declares() -> None:
    task = SimpleNamespace(stage=SimpleNamespace(num_workers=1, processes=None))
    with pytest.raises(VlpipeError, match=r"launch: 2 workers, but the stage's num_workers, .* is 1"):
        _launch(task, Resources(), 1, print, {}, num_workers=2)
    done: list[int] = []
    _launch(task, Resources(), 1, done.append, 5)
    assert done == [5]


def test_a_step_that_asks_for_more_than_there_is_is_an_error_not_a_hang(
    tmp_path: Path, two_cpus: str
) -> None:
    from vlpipe.pipeline.engine.on_ray.connection import Cluster

    text = CHAIN.replace("by: 3}", "by: 3, resources: {cpus: 4000}}")
    with pytest.raises(
        VlpipeError, match=r"step 'scale' needs 4000 CPU, and no node has that: the cluster has 2 CPU, 1 GPU"
    ):
        run(tmp_path, text, address=two_cpus)
    assert Cluster({}, None).nodes_text([{"CPU": 2}]).startswith("no node has that: this machine has 2 CPU")


def driver(folder: Path, *more: str, env: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """`vlpipe run` in a process of its own. A Ray that this process started or joined tells it nothing about tokens."""
    env = env or {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(folder / "w.yaml"),
        "--root",
        str(folder / "root"),
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)


def wait_for_receipts(folder: Path, num: int, process: "subprocess.Popen[bytes]") -> None:
    while len(list((folder / "root").glob("*/_receipts/*.json"))) < num:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def run_id(folder: Path) -> str:
    return holder_run(Store(str(folder / "root")))


def workers_of(run: str) -> list[int]:
    found = []
    for pid in processes_of(run):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith(b"ray::") and b"Agent" not in name:  # Ray's own agents: the node dies with them
            found.append(pid)
    return found


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_worker_leave_the_same_bytes_and_no_process(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    run(undisturbed, SLOW)
    planned(killed, SLOW)  # writes the file
    first = driver(killed)
    wait_for_receipts(killed, random.randint(13, 25), first)
    dead_run = run_id(killed)
    first.kill()
    first.wait()
    second = driver(killed)
    wait_for_receipts(killed, 30, second)
    for pid in workers_of(run_id(killed))[:1]:
        os.kill(pid, signal.SIGKILL)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said.decode()
    assert not processes_of(dead_run)
    assert left(killed / "root") == left(undisturbed / "root")


def test_an_interrupt_that_a_stage_swallows_stops_the_run(tmp_path: Path) -> None:
    planned(tmp_path, SLOW.replace('"toys:Scale", from: numbers, seconds: 0.1', '"toys:Deaf", from: numbers'))
    process = driver(tmp_path, "--local")
    assert process.wait(timeout=60) == 130
    assert len(list((tmp_path / "root").glob("scale-*/_receipts/*.json"))) < 12  # of 12 shards


def test_the_exit_code_is_the_signal_s_if_a_library_raises_its_own_interrupt(tmp_path: Path) -> None:
    planned(
        tmp_path,
        SLOW.replace('"toys:Scale", from: numbers, seconds: 0.1', '"toys:NamesNoSignal", from: numbers'),
    )
    assert driver(tmp_path, "--local").wait(timeout=60) == 143


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "more"),
    [
        (signal.SIGINT, 130, ("--address",)),
        (signal.SIGTERM, 143, ()),
        (signal.SIGINT, 130, ("--local",)),
        (signal.SIGTERM, 143, ("--local",)),
        (signal.SIGHUP, 129, ("--local",)),
    ],
)
def test_an_interrupted_run_says_by_what_and_goes_on_later(
    tmp_path: Path, number: signal.Signals, code: int, more: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    planned(tmp_path, SLOW.replace("seconds: 0.1", "seconds: 3"))  # not done before it is interrupted
    if "--address" in more:
        more += (request.getfixturevalue("two_cpus"),)
    process = driver(tmp_path, *more)
    wait_for_receipts(tmp_path, 14, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert not (tmp_path / "root" / "_lock.json").exists()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert "--local" in more or "have 10 s to finish" in " ".join(said.split())
    steps = run(tmp_path, SLOW.replace("seconds: 0.1", "seconds: 0"))
    assert rows(tmp_path, steps["payload"]).num_rows == 60


@pytest.mark.slow
def test_a_step_that_fails_leaves_another_branch_time_to_finish_its_shards(
    tmp_path: Path, two_cpus: str
) -> None:
    text = f"""steps:
  numbers: {{use: "toys:Numbers", num_rows: 10, shard_rows: 5}}
  fails: {{use: "toys:Loses", from: numbers}}
  slow: {{use: "toys:Timed", from: numbers, seconds: 3, times: {tmp_path}/times.txt}}
"""
    planned(tmp_path, text)
    process = driver(tmp_path, "--address", two_cpus)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a step failed; running tasks" in " ".join(said.decode().split())
    assert list((tmp_path / "root").glob("slow-*/_receipts/*.json"))


@pytest.mark.slow
def test_a_second_run_on_the_same_root_is_refused(tmp_path: Path) -> None:
    waits = f'"toys:Timed", from: numbers, seconds: 0, times: {tmp_path}/times, meets: {tmp_path}/refused'
    planned(tmp_path, SLOW.replace('"toys:Scale", from: numbers, seconds: 0.1', waits))
    process = driver(tmp_path, "--local")
    wait_for_receipts(tmp_path, 2, process)
    other = driver(tmp_path, "--local")
    assert other.wait(timeout=60) == 1
    assert other.stderr is not None
    assert f"is in use by another run (process {process.pid}" in " ".join(
        other.stderr.read().decode().split()
    )
    (tmp_path / "refused").touch()
    code = process.wait(timeout=60)
    assert process.stderr is not None
    assert code == 0, process.stderr.read().decode()


@contextmanager
def head(folder: Path, auth: str) -> Iterator[tuple[int, dict[str, str]]]:
    """A cluster with two CPUs, the port of its head, and the environment of a user whose home holds a token."""
    env, (port,) = home_with_token(folder, without="RAY_A"), free_ports(1)
    options = ["--num-cpus", "2", "--include-dashboard", "false"]
    with ray_head(port, *options, env={**env, "RAY_AUTH_MODE": auth}):
        yield port, env


@pytest.mark.slow
@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_a_cluster_with_and_one_without_tokens_give_the_same_bytes(tmp_path: Path, auth: str) -> None:
    """A token lies in the home folder in both cases; the address comes from the environment in one."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    run(here, CHAIN)
    planned(there, CHAIN)
    with head(tmp_path, auth) as (port, env):
        address = ["--address", f"127.0.0.1:{port}"]
        if auth == "disabled":
            env, address = env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, ["--address", "auto"]
        else:
            strange = driver(there, *address, env=env | {"HOME": str(here)})
            _, said = strange.communicate(timeout=120)
            assert strange.returncode == 1
            assert f"the Ray cluster at 127.0.0.1:{port} requires a token" in " ".join(said.decode().split())
        done = driver(there, *address, env=env)
        assert done.wait(timeout=120) == 0, done.stderr and done.stderr.read()
    assert left(there / "root") == left(here / "root")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "10.0.0.1",
            "wanted HOST:PORT of a cluster's head, [IPv6]:PORT, ray://HOST:PORT, or auto, got '10.0.0.1'",
        ),
        ("::1:6379", "wanted HOST:PORT"),
        ("host:port", "wanted HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: Connection refused"),
        ("[::1]:1", "no Ray cluster answers at [::1]:1: "),
        ("ray://127.0.0.1:1", "no Ray cluster answers at ray://127.0.0.1:1: Connection refused"),
    ],
)
def test_an_address_where_nothing_answers_is_one_sentence(address: str, said: str) -> None:
    from vlpipe.pipeline.engine.on_ray.connection import Cluster

    with pytest.raises(VlpipeError, match=re.escape(said)):
        Cluster({}, address).connect()
