"""A server that a step starts for itself, on its own machine and GPUs, and stops: vLLM, SGLang, or any other.

The server runs in a process of its own, with whatever Python it needs; nothing of it is imported. `endpoint.supervise`
ends it with the worker that started it, also if that is killed.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

from pydantic import Field

from vlpipe.pipeline.engine.worker.device import VARIABLE as GPUS
from vlpipe.pipeline.errors import AttemptFailed, VlpipeError, one_line
from vlpipe.stages.endpoint import supervise

HOST = "127.0.0.1"
FIELDS = ("{port}", "{model}", "{gpus}", "{python}")
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")  # of this Python
ANSWER_S = 5.0  # of one question whether it is ready
MAX_LOOK_S = 1.0  # between two such questions
LINES = 6  # of what the server wrote, in an error text
SECONDS = Annotated[float, Field(gt=0)]


class ServerNotReady(VlpipeError):
    """A managed server cannot be started, or is not ready in time."""


class ServerDied(AttemptFailed):
    """A managed server ended by itself while it was needed. Another attempt at the shard starts it again."""


@dataclass(frozen=True, kw_only=True)
class Managed:
    """How a step starts its server. command: program and arguments, as a list, of which a part may hold `{port}`, which is
    chosen by the step and must be there, `{model}`, the step's parameter, `{gpus}`, how many GPUs a worker has, and
    `{python}`, this Python.

    environment: folder of another virtual or conda environment, whose programs are found first. The server must answer 200
    at ready_path, on 127.0.0.1, within ready_s. stop_s: how long it may take to stop after SIGTERM.
    """

    command: tuple[str, ...]
    environment: str = ""
    ready_path: str = "/health"
    ready_s: SECONDS = 1800.0
    stop_s: SECONDS = 10.0

    def problems(self) -> list[str]:
        """Returns error texts for `preflight`."""
        if not self.command or not self.command[0].strip():
            return ["server.command is empty"]
        found = []
        if not any(FIELDS[0] in part for part in self.command):
            found.append(
                "server.command must have {port}, which the step chooses: several workers may share a machine; such as "
                "[vllm, serve, '{model}', --host, 127.0.0.1, --port, '{port}']"
            )
        if not self.ready_path.startswith("/"):
            found.append(f"server.ready_path must begin with a slash, got {self.ready_path!r}")
        return found

    def filled(self, port: int, model: str) -> list[str]:
        """Returns the command for a port."""
        num = os.environ.get(GPUS, "0")
        values = (str(port), model, str(max(1, int(float(num)))), sys.executable)
        found = []
        for part in self.command:
            for name, value in zip(FIELDS, values, strict=True):
                part = part.replace(name, value)
            found.append(part)
        return found

    def environ(self) -> dict[str, str]:
        """Returns the server's environment: this process's, with the GPUs of the step alone."""
        found = dict(os.environ)
        if self.environment:
            for name in OURS:
                found.pop(name, None)
            found["PATH"] = os.pathsep.join(
                [str(Path(self.environment, "bin")), found.get("PATH", os.defpath)]
            )
        asked = found.get(GPUS)
        if asked is not None:  # within a run
            num = math.ceil(float(asked))
            given = found.get("CUDA_VISIBLE_DEVICES")
            devices = [str(n) for n in range(num)] if given is None else given.split(",")
            found["CUDA_VISIBLE_DEVICES"] = ",".join(devices[:num])
        return found


class ManagedServer:
    """A server that was started. url: what `base_url` would be; it stays the same if the server is started again."""

    def __init__(self, spec: Managed, model: str, secret: str = "") -> None:
        self._spec, self._model, self._secret = spec, model, secret
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}/v1"
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: Thread | None = None
        self._heard: dict[str, Any] = {}
        self._over = Event()

    def start(self) -> None:
        """Starts the server and waits until it is ready. Raises ServerNotReady."""
        spec = self._spec
        if spec.environment and not Path(spec.environment, "bin").is_dir():
            raise ServerNotReady(
                f"server.environment: {spec.environment} on {os.uname().nodename} is not an environment: it has "
                "no folder bin"
            )
        command, environ = spec.filled(self._port, self._model), spec.environ()
        program = shutil.which(command[0], path=environ.get("PATH"))
        if program is None:
            raise ServerNotReady(
                f"server.command: there is no program {command[0]!r} on {os.uname().nodename}; install it, give its full "
                "path, or name its environment as server.environment"
            )
        self._heard, self._over = {}, Event()
        call = [sys.executable, "-I", "-S", supervise.__file__, f"{spec.stop_s:g}", program, *command[1:]]
        self._process = subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True
        )
        self._thread = Thread(target=self._listen, args=(self._process,), name="server", daemon=True)
        self._thread.start()
        self._process.wait()  # it has left a process of its own behind
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        heard, over = self._heard, self._over
        for line in process.stdout:
            heard |= json.loads(line)
        over.set()

    def _wait_until_ready(self) -> None:
        deadline, wait_s = time.monotonic() + self._spec.ready_s, 0.05
        while not self._over.wait(min(wait_s, max(0.0, deadline - time.monotonic()))):
            if self._is_ready() and not self._over.is_set():
                return
            if time.monotonic() >= deadline:
                self.stop()
                raise ServerNotReady(
                    f"server.command: {self._name} did not answer 200 to GET {self._spec.ready_path} within "
                    f"{self._spec.ready_s:g} s{self._said()}"
                )
            wait_s = min(1.5 * wait_s, MAX_LOOK_S)
        if "failed" in self._heard:
            raise ServerNotReady(f"server.command: {self._heard['failed']}")
        raise ServerNotReady(
            f"server.command: {self._name} ended with {self._code()} before it was ready{self._said()}"
        )

    def _is_ready(self) -> bool:
        line = http.client.HTTPConnection(HOST, self._port, timeout=ANSWER_S)
        try:
            line.request("GET", self._spec.ready_path)
            return line.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            line.close()

    def need(self) -> None:
        """Raises ServerDied if the server has ended."""
        if self._over.is_set():
            raise ServerDied(
                f"the server that server.command started, {self._name}, ended with {self._code()}{self._said()}"
            )

    def again(self) -> None:
        """Starts the server again if it has ended."""
        if self._over.is_set():
            self.stop()
            self.start()

    def stop(self) -> None:
        """Stops the server; returns when all its processes have ended."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        self._over.wait(self._spec.stop_s + 30.0)
        with suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stdout
        if self._thread is not None:
            self._thread.join(5.0)
        process.stdout.close()

    @property
    def _name(self) -> str:
        return repr(self._spec.command[0])

    def _code(self) -> str:
        code = self._heard.get("ended")
        return "no exit code" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"

    def _said(self) -> str:
        """Returns the last lines of what the server wrote, for an error text, without the key."""
        said = str(self._heard.get("said", ""))
        said = said.replace(self._secret, "(hidden)") if self._secret else said
        lines = [one_line(line, 300) for line in said.splitlines() if line.strip()][-LINES:]
        return f"; it wrote: {' / '.join(lines)}" if lines else "; it wrote nothing"


def free_port() -> int:
    """Returns a port that nothing on this machine listens on at the moment."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


@contextmanager
def started(spec: Managed, model: str, secret: str = "") -> Iterator[ManagedServer]:
    """Starts a server, yields it when it is ready, and stops it. Raises ServerNotReady."""
    server = ManagedServer(spec, model, secret)
    server.start()
    try:
        yield server
    finally:
        server.stop()
