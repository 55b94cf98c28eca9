"""On Ray: the same bytes as in one process, and what happens when processes die."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import CHAIN, left, planned, rejects, rows, run

from vlpipe.pipeline.errors import StepFailed, VlpipeError
from vlpipe.pipeline.lock import holder_run, processes_of
from vlpipe.pipeline.store import Store

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


def test_a_row_that_kills_its_worker_is_found_and_named(tmp_path: Path) -> None:
    steps = run(tmp_path, KILLS, ray=True)
    assert rows(tmp_path, steps["b"])["n"].to_pylist() == [n for n in range(12) if n != 4]
    assert [(r["id"], r["kind"], r["why"]) for r in rejects(tmp_path, steps["b"])] == [
        ("id4", "fault", "killed_worker")
    ]


def test_weights_that_cannot_be_loaded_are_the_steps_error_and_no_rows(tmp_path: Path) -> None:
    text = 'steps:\n  a: {use: "toys:Numbers", num_rows: 5}\n  b: {use: "toys:Unopenable", from: a}\n'
    with pytest.raises(
        StepFailed, match=r"shard 0 of step 'b' failed: ValueError: the weights are of another model"
    ):
        run(tmp_path, text, ray=True)
    assert not list((tmp_path / "root").glob("b-*/_rejects"))


def test_a_step_that_asks_for_more_than_there_is_is_an_error_not_a_hang(tmp_path: Path) -> None:
    text = CHAIN.replace("by: 3}", "by: 3, resources: {cpus: 4000}}")
    with pytest.raises(
        VlpipeError, match=r"step 'scale' needs 4000 CPU, and no node has that: this machine has \d+ CPU"
    ):
        run(tmp_path, text, ray=True)


def driver(folder: Path, *more: str) -> "subprocess.Popen[bytes]":
    """`vlpipe run` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli",
        "run",
        str(folder / "w.yaml"),
        "--root",
        str(folder / "root"),
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


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


def test_an_interrupted_run_exits_with_130_and_goes_on_later(tmp_path: Path) -> None:
    slower = SLOW.replace("seconds: 0.1", "seconds: 0.5")  # it must not be done before it is interrupted
    planned(tmp_path, slower)
    process = driver(tmp_path)
    wait_for_receipts(tmp_path, 14, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    steps = run(tmp_path, slower)
    assert rows(tmp_path, steps["payload"]).num_rows == 60


def test_a_second_run_on_the_same_root_is_refused(tmp_path: Path) -> None:
    planned(tmp_path, SLOW)
    process = driver(tmp_path, "--local")
    wait_for_receipts(tmp_path, 13, process)
    other = driver(tmp_path, "--local")
    assert other.wait(timeout=60) == 1
    assert other.stderr is not None
    assert f"is in use by another run: process {process.pid}" in " ".join(
        other.stderr.read().decode().split()
    )
    code = process.wait(timeout=60)
    assert process.stderr is not None
    assert code == 0, process.stderr.read().decode()


def test_a_cluster_that_was_started_before_gives_the_same_bytes(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    run(here, CHAIN)
    planned(there, CHAIN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += ["--port", str(port), "--num-cpus", "2", "--include-dashboard", "false"]
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        done = driver(there, "--address", f"127.0.0.1:{port}")
        assert done.wait(timeout=120) == 0, done.stderr and done.stderr.read()
    finally:
        head.terminate()
        head.wait(timeout=60)
    assert left(there / "root") == left(here / "root")


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
