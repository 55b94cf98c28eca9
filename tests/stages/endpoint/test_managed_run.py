"""A run with a server of its own: killed with SIGKILL, it leaves no server behind, and asks nothing stored again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.endpoint.kill_rounds import HERE, accounted, allowed_after, lines_of, stored

ROWS = 200
RUN = (sys.executable, "-m", "vlpipe.pipeline.cli.main", "run")
WORKFLOW = """
name: managed
steps:
  pictures: {{use: "picture_toys:Pictures", num: {num}, shard_rows: 50}}
  captions:
    use: "caption.endpoint:CaptionEndpoint"
    from: pictures
    server:
      command: [{python}, -m, vlpipe.stages.chat_server, --port, "{{port}}", --slots, "4", --log, {log}]
      ready_s: 60
    model: demo
    prompt: "Describe it. Alt-text: {{alt_text}}"
    concurrency: 4
    max_tokens: 16
    resources: {{actors: 1}}
"""


def servers(log: Path) -> list[int]:
    """Returns the processes of the servers that write this log."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if str(log).encode() in command and b"vlpipe.stages.chat_server" in command:
            found.append(int(entry.name))
    return found


def until(true: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"it did not happen within {within_s:g} s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--local"], []], ids=["local", "ray"])
def test_the_server_of_a_killed_driver_ends(tmp_path: Path, more: list[str]) -> None:
    log, root, file = tmp_path / "server.log", tmp_path / "root", tmp_path / "w.yaml"
    file.write_text(WORKFLOW.format(num=ROWS, python=sys.executable, log=log, die_after=0))
    log.touch()

    def start() -> subprocess.Popen[bytes]:
        command = [*RUN, str(file), "--root", str(root), *more]
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        with (tmp_path / "out.txt").open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)

    run = start()
    until(
        lambda: sum(one["what"] == "answered" for one in lines_of(log)) >= 40 or run.poll() is not None, 120
    )
    assert run.poll() is None, (tmp_path / "out.txt").read_text()[-2000:]
    os.kill(run.pid, signal.SIGKILL)
    killed_at = time.time()
    run.wait()
    until(lambda: not servers(log), 60)
    before, old = stored(root), lines_of(log)
    run = start()
    assert run.wait(200) == 0, (tmp_path / "out.txt").read_text()[-2000:]
    until(lambda: not servers(log), 60)
    asked = [one["image"] for one in lines_of(log)[len(old) :] if one["what"] == "asked"]
    assert not set(asked) & before
    every = [one["image"] for one in lines_of(log) if one["what"] == "asked"]
    assert len(set(every)) == ROWS
    assert len(every) - ROWS <= allowed_after(old, killed_at)
    assert accounted(root, ROWS) == []


@pytest.mark.slow
def test_a_server_that_dies_again_and_again_costs_attempts_and_no_answer(tmp_path: Path) -> None:
    """It dies after 40 answers each time; a shard of 50 rows needs two servers, and the runner tries it again."""
    log, root, file = tmp_path / "server.log", tmp_path / "root", tmp_path / "w.yaml"
    file.write_text(WORKFLOW.format(num=100, python=sys.executable, log=log, die_after=40))
    command = [*RUN, str(file), "--root", str(root), "--local"]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert accounted(root, 100) == []
    lines = lines_of(log)
    asked = [one["image"] for one in lines if one["what"] == "asked"]
    answered = [one for one in lines if one["what"] == "answered"]
    assert len(set(asked)) == 100
    assert len(answered) >= 100
    assert (
        len(asked) - 100 <= 3 * 2 * 4
    )  # three servers died, with at most 4 questions in their slots and 4 answers on the way
    until(lambda: not servers(log), 60)
