"""A server that a step starts for itself: until it is ready, when it never is, when it dies; and it dies with the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint_toys import rows

from vlpipe.pipeline.errors import AttemptFailed
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.endpoint import CaptionEndpoint
from vlpipe.stages.chat_server.settings import DIED
from vlpipe.stages.endpoint.managed import Managed, ManagedServer, ServerDied, ServerNotReady, started

# A server without imports beyond the standard library: answers 200 once it runs; begins a grandchild that ignores SIGTERM.
SMALL = """
import http.server, os, signal, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
open(sys.argv[2], "w").write(f"{os.getpid()} {child.pid}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def until(true: Callable[[], Any], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"it did not happen within {within_s:g} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pids(file: Path) -> list[int]:
    until(lambda: file.exists() and len(file.read_text().split()) == 2)
    return [int(one) for one in file.read_text().split()]


def small(file: Path, **more: Any) -> Managed:
    return Managed(command=(sys.executable, "-c", SMALL, "{port}", str(file)), stop_s=0.3, **more)


def script(code: str, **more: Any) -> Managed:
    return Managed(command=(sys.executable, "-c", code, "{port}"), **more)


def chat(*more: str) -> Managed:
    command = (
        sys.executable,
        "-m",
        "vlpipe.stages.chat_server",
        "--port",
        "{port}",
        "--latency",
        "0.01",
        *more,
    )
    return Managed(command=command, ready_s=60.0)


def test_it_is_ready_when_it_is_used_and_gone_afterwards(tmp_path: Path) -> None:
    with started(small(tmp_path / "pids"), "m") as server:
        mine = pids(tmp_path / "pids")
        assert all(map(is_running, mine))
        server.need()
        port = int(server.url.split(":")[2].split("/")[0])
        socket.create_connection(("127.0.0.1", port), 1).close()
    assert not any(map(is_running, mine))  # also the grandchild that ignores SIGTERM, in a session of its own


def test_a_step_captions_with_its_own_server() -> None:
    stage = CaptionEndpoint(server=chat(), model="demo", prompt="Describe it.", concurrency=4)
    assert stage.preflight() == []
    out = run_map(stage, rows(6))
    assert out.counts["captions_good"] == 6


def test_a_server_that_dies_is_told_with_what_it_wrote_and_started_again() -> None:
    stage = CaptionEndpoint(
        server=chat("--die-after", "4"), model="demo", prompt="Describe it.", concurrency=1, retries=0
    )
    with stage.open() as work:
        for _ in range(
            2
        ):  # the runner tries a shard again after an AttemptFailed: the server is started again
            with pytest.raises(ServerDied, match=f"ended with exit code {DIED}; it wrote: listening on"):
                work(rows(6))
        assert work(rows(3)).counts["captions_good"] == 3
    assert issubclass(ServerDied, AttemptFailed)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            script("import sys; sys.exit('no such model')", ready_s=60.0),
            "ended with exit code 1 before it was ready; it wrote: no such model",
        ),
        (
            Managed(command=("sh", "-c", "echo loading; exec sleep 60", "{port}"), ready_s=2.0),
            "did not answer 200 to GET /health within 2 s; it wrote: loading",
        ),
        (Managed(command=("no-such-program", "{port}")), "there is no program 'no-such-program'"),
        (
            Managed(command=("vllm", "{port}"), environment="/no/such/place"),
            "/no/such/place on .* is not an environment: it has no folder bin",
        ),
    ],
    ids=["ends", "never ready", "no program", "no environment"],
)
def test_a_server_that_does_not_start(spec: Managed, problem: str) -> None:
    with pytest.raises(ServerNotReady, match=problem), started(spec, "m"):
        pytest.fail("it is not ready")


def test_another_environment_and_the_steps_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is found in the environment, which does not see this Python's modules; GPUs are those of the step."""
    (tmp_path / "env/bin").mkdir(parents=True)
    program = tmp_path / "env/bin/serve-model"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nnames = ('PYTHONPATH', 'VIRTUAL_ENV', 'CUDA_VISIBLE_DEVICES')\n"
        "print(json.dumps([sys.argv[2:], [os.environ.get(n) for n in names]]), flush=True)\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    spec = Managed(
        command=("serve-model", "{port}", "{model}", "--tp={gpus}"), environment=str(tmp_path / "env")
    )
    for asked, given, seen in (("2", None, "0,1"), ("1", "5,6", "5"), ("0", "5,6", ""), ("0.5", None, "0")):
        monkeypatch.setenv("VLPIPE_GPUS", asked)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        with pytest.raises(ServerNotReady) as raised, started(spec, "Qwen/X"):
            pass
        said = json.loads(str(raised.value).split("it wrote: ")[1])
        assert said == [["Qwen/X", f"--tp={max(1, int(float(asked)))}"], [None, None, seen]]


def test_the_key_is_not_in_the_error() -> None:
    code = "import sys; sys.exit('key sk-secret-1 is wrong')"
    with pytest.raises(ServerNotReady) as raised, started(script(code), "m", "sk-secret-1"):
        pass
    assert "key (hidden) is wrong" in str(raised.value)


WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{here!r}]
from test_managed import small
from vlpipe.stages.endpoint.managed import started
with started(small(Path({file!r})), "m"):
    time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_it_dies_with_what_wants_it(tmp_path: Path, victim: str) -> None:
    code = WORKER.format(here=str(Path(__file__).parent), file=str(tmp_path / "pids"))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    worker = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        server, grandchild = pids(tmp_path / "pids")
        supervisor = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
        assert supervisor != worker.pid
        os.kill(worker.pid if victim == "worker" else supervisor, signal.SIGKILL)
        until(lambda: not is_running(server))
        if victim == "worker":
            until(lambda: not is_running(grandchild) and not is_running(supervisor))
        else:  # nobody is left who would know the grandchild; a server's own processes end with it
            os.kill(grandchild, signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "give `base_url`, or `server`"),
        ({"base_url": "http://x/v1", "server": Managed(command=("a", "{port}"))}, "either `base_url`, or"),
        ({"server": Managed(command=())}, "server.command is empty"),
        ({"server": Managed(command=("vllm", "serve"))}, "server.command must have {port}"),
        ({"server": Managed(command=("a", "{port}"), ready_path="health")}, "must begin with a slash"),
    ],
)
def test_mistakes_are_told_before_anything_runs(given: dict[str, Any], problem: str) -> None:
    found = CaptionEndpoint(model="m", prompt="p", **given).preflight()
    assert any(problem in one for one in found)


def test_a_stopped_server_can_be_stopped_again(tmp_path: Path) -> None:
    server = ManagedServer(small(tmp_path / "pids"), "m")
    server.start()
    server.stop()
    server.stop()
    with pytest.raises(ServerDied):
        server.need()
