"""Ray clusters that tests start: free ports, a user's home with a token, and a head that answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
WAIT_S = 90


def free_ports(num: int) -> list[int]:
    """Different ports that nothing listens on."""
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def home_with_token(folder: Path, *, without: str) -> dict[str, str]:
    """The environment of a user whose home, below `folder`, holds a token; without variables that begin with `without`."""
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    return {k: v for k, v in os.environ.items() if not k.startswith(without)} | {"HOME": str(home)}


@contextmanager
def ray_head(
    port: int, *options: str, env: Mapping[str, str], cwd: str | None = None, answers_at: int = 0
) -> Iterator[None]:
    """A cluster's head at `port`, until the block ends. answers_at: the port that is waited for; 0 for its own."""
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options], cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(answers_at or port)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
