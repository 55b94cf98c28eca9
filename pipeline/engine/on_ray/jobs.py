"""Ray Jobs: submits a command with its code to a cluster, follows its output, returns its exit code.

The submitting machine needs the cluster's HTTP port (8265) only, and may leave: the job's driver runs on the head node.
Unlike with Ray Client (`ray://`), a lost connection does not end the run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from vlpipe.pipeline.engine.on_ray.connection import AUTH, CLIENT, USERS_AUTH, checked_address
from vlpipe.pipeline.errors import VlpipeError

LOOK_S = 0.5  # seconds between two looks at the state of a job
LOST_S = 60.0  # max seconds to wait for a cluster that answers no more, while a job is followed
ENTRY = ("python", "-m", "vlpipe.pipeline.cli.main")
QUIET = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143  # of a job that was stopped: 128 + SIGTERM


@dataclass(frozen=True)
class Job:
    """state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. began_s: seconds since 1970, 0 before it starts.

    code: exit code of its driver, None before it ends; message: what Ray says about its state.
    """

    id: str
    state: str
    code: int | None
    message: str
    began_s: float
    metadata: Mapping[str, str]


class _Shown:
    """Writes each character of an output once, though the output comes again from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._num = write, 0

    def all(self, text: str) -> None:
        self.part(0, text)

    def part(self, start: int, text: str) -> int:
        """Shows what of `text`, which begins at character `start`, was not shown. Returns where it ends."""
        end = start + len(text)
        if end > self._num:
            self._write(text[max(0, self._num - start) :])
            self._num = end
        return end


class Jobs:
    """The jobs of one cluster. address: http(s)://HOST:8265, HOST:PORT of its head, or auto.

    Raises VlpipeError if no cluster answers, if it has no job server, or if it requires a token that is not available.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = self._connected(_http_address(address))

    def submit(
        self, args: Sequence[str], runtime_env: Mapping[str, Any], name: str, metadata: Mapping[str, str]
    ) -> str:
        """Starts `vlpipe ARGS` on the cluster and returns the job's id, which begins with `name`."""
        with _one_sentence(f"the cluster at {self.address} takes no job"):
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join([*ENTRY, *args]),
                    submission_id=f"{name}-{uuid.uuid4().hex[:8]}",
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
            )

    def job(self, id: str) -> Job:
        """Raises VlpipeError if there is no such job."""
        with _one_sentence(f"no job {id!r} at {self.address}; `vlpipe jobs` lists them"):
            return _job(self._client.get_job_info(id))

    def all(self) -> list[Job]:
        """Returns the submitted jobs that the cluster remembers, oldest first."""
        with _one_sentence(f"the cluster at {self.address} does not list its jobs"):
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda one: one.began_s)

    def stop(self, id: str) -> None:
        """Sends SIGTERM to the job's driver. Raises VlpipeError if there is no such job."""
        with _one_sentence(f"job {id!r} at {self.address} cannot be stopped"):
            self._client.stop_job(id)

    def output(self, id: str) -> str:
        """Returns what the job has written until now."""
        with _one_sentence(f"job {id!r} at {self.address} has no output"):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str, write: Callable[[str], None], check: Callable[[], None]) -> Job:
        """Writes the job's output as it comes, until it ends. Returns the job.

        check: called at least every `LOOK_S` seconds; may raise to leave. A connection that breaks is opened again; nothing
        is written twice. Raises VlpipeError if the cluster does not answer for `LOST_S` seconds.
        """
        from aiohttp import ClientError

        shown, lost_since = _Shown(write), 0.0
        while True:
            try:
                asyncio.run(self._tail(id, shown, check))
                job = _job(self._client.get_job_info(id))
                if job.state in OVER:
                    shown.all(str(self._client.get_job_logs(id)))
                    return job
                lost_since = 0.0
            except (OSError, RuntimeError, ClientError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_S:
                    raise VlpipeError(
                        f"the cluster at {self.address} does not answer any more, and job {id!r} may go on: {error}"
                    ) from error
            time.sleep(LOOK_S)
            check()

    async def _tail(self, id: str, shown: _Shown, check: Callable[[], None]) -> None:
        """Shows the job's output, which Ray sends from its beginning, until the job ends or the connection breaks."""
        end, lines = 0, self._client.tail_job_logs(id)
        coming = asyncio.ensure_future(anext(lines))
        try:
            while True:
                done, _ = await asyncio.wait([coming], timeout=LOOK_S)
                check()
                if done:
                    end = shown.part(end, coming.result())
                    coming = asyncio.ensure_future(anext(lines))
        except StopAsyncIteration:
            return
        finally:
            coming.cancel()

    def _connected(self, url: str) -> Any:
        """Returns Ray's client. The machine's token is sent only to a cluster that requires one."""
        from ray.job_submission import JobSubmissionClient

        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        _send_token(USERS_AUTH == "token")
        try:
            with _one_sentence(f"no job server answers at {url}", f"; {INSTALLED}"):
                try:
                    return _asked(JobSubmissionClient, url)
                except ray.exceptions.AuthenticationError:
                    if USERS_AUTH is not None or not _has_token():
                        raise
                    _send_token(True)
                    return _asked(JobSubmissionClient, url)
        except ray.exceptions.AuthenticationError as error:
            raise VlpipeError(
                f"the Ray cluster at {url} requires a token that this machine does not have: put its own "
                "(`ray get-auth-token` on the head) into RAY_AUTH_TOKEN or ~/.ray/auth_token"
            ) from error


def _asked(client: Any, url: str) -> Any:
    """Returns a client of the job server at `url` that has answered a request for which a token counts."""
    found = client(url)
    found.list_jobs()
    return found


def _send_token(yes: bool) -> None:
    if USERS_AUTH is None:
        os.environ.pop(AUTH, None)
        if yes:
            os.environ[AUTH] = "token"
        Config.initialize("")


def _has_token() -> bool:
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _http_address(address: str) -> str:
    """Returns the URL of the cluster's job server."""
    if address.startswith(CLIENT):
        raise VlpipeError(
            f"--address {address}: a job is submitted over HTTP, not by Ray Client; give http://HOST:8265 of the head"
        )
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    from ray.dashboard.utils import ray_address_to_api_server_url

    head = checked_address(address)
    try:
        url = str(ray_address_to_api_server_url(head))
    except Exception as error:  # Ray raises several kinds; all mean that the head has registered no dashboard
        raise VlpipeError(NO_SERVER.format(where=f"the cluster at {head}")) from error
    if url.rstrip("/").endswith(":") or url in ("http://", "http://None"):
        raise VlpipeError(NO_SERVER.format(where=f"the cluster at {head}"))
    return url


INSTALLED = "install its head with `pip install 'ray[default]'` and start it with the dashboard"
NO_SERVER = "{where} has no job server: " + INSTALLED


@contextmanager
def _one_sentence(what: str, todo: str = "") -> Iterator[None]:
    """Turns the errors of Ray's client into a VlpipeError, except that of a token."""
    try:
        yield
    except ray.exceptions.AuthenticationError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if "returned 404" in str(error):
            raise VlpipeError(NO_SERVER.format(where=what)) from error
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise VlpipeError(f"{what}: {text[-1]}{todo}") from error


def _job(found: Any) -> Job:
    state = getattr(found.status, "value", str(found.status))
    return Job(
        id=str(found.submission_id),
        state=state,
        code=found.driver_exit_code,
        message=str(found.message or ""),
        began_s=(found.start_time or 0) / 1000,
        metadata=dict(found.metadata or {}),
    )


def exit_code(job: Job) -> int:
    """Returns the exit code of the job's driver, 128 + N if signal N ended it; 143 if stopped, 1 if it never started."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return STOPPED_CODE
    return 128 - job.code if job.code is not None and job.code < 0 else job.code or 1
