"""Runs a stage's function in its own process, so that a row that kills the process or never ends can be found.

Used after a shard has killed a worker twice, and for steps with a `row_group_timeout_s`. This module, run as a program,
reads pickled batches from standard input and writes results to standard output. It is restarted after each death.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import pyarrow as pa

from vlpipe.pipeline.engine.worker.guard import (
    ChildDied,
    ChildRaised,
    DeadlinePassed,
    Fault,
    fault_of,
    is_nobodys,
    is_raised,
)
from vlpipe.pipeline.errors import StepFailed
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import MapStage, Work


def send(pipe: IO[bytes], value: Any) -> None:
    """Writes a pickled value, preceded by its length as 8 bytes, big-endian."""
    try:
        data = pickle.dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError):
        data = _cloudpickled(value)
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def _cloudpickled(value: Any) -> bytes:
    """Returns a pickle that also holds classes of `__main__`. Imports Ray, which costs a process 0.9 s."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


def receive(pipe: IO[bytes]) -> Any:
    """Reads a value written by `send` and returns it. Raises EOFError if the pipe closes first."""
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    data = pipe.read(int.from_bytes(size, "big"))
    if len(data) < int.from_bytes(size, "big"):
        raise EOFError
    return pickle.loads(data)


class _Child:
    def __init__(
        self, stage: MapStage, torch_threads: int, shared: Address | None, deadline_s: float | None
    ) -> None:
        self._start = (stage, torch_threads, shared)
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "vlpipe.pipeline.engine.worker.child_process"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
            assert self._process.stdin
            assert self._process.stdout
            assert self._process.stderr
            self._prints = threading.Thread(target=_forward_output, args=(self._process.stderr,), daemon=True)
            self._prints.start()
            try:
                send(self._process.stdin, (sys.path, _cloudpickled(self._start)))
                opening = receive(self._process.stdout)
            except (EOFError, BrokenPipeError):
                code = self._process.wait()
                raise StepFailed(f"the process that opens the stage died with exit code {code}") from None
            if opening is not None:  # an error in `open`: no row is the cause
                raise StepFailed(f"the stage cannot be opened: {opening}")
        return self._process

    def __call__(self, batch: pa.Table) -> Out | pa.Table:
        process = self._alive()
        assert process.stdin
        assert process.stdout
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._deadline_s, end) if self._deadline_s is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            send(process.stdin, batch)
            result = receive(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            if late.is_set():
                raise DeadlinePassed(
                    f"the stage was not done with the row after {self._deadline_s:g} s"
                ) from None
            raise ChildDied(f"the process that ran only this row died with exit code {code}") from None
        finally:
            if timer:
                timer.cancel()
        if late.is_set():  # it answered just before the timer killed it
            process.wait()
        if isinstance(result, Fault):
            raise ChildRaised(result)
        if isinstance(result, BaseException):  # an infrastructure error
            raise result
        return result

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._prints.join(timeout=1.0)  # a process started by the child may keep the pipe open


def _forward_output(lines: IO[bytes]) -> None:
    """Forwards what the child prints to this process's stderr."""
    for line in lines:
        sys.stderr.write(line.decode(errors="backslashreplace"))


@contextmanager
def isolated(
    stage: MapStage, torch_threads: int, shared: Address | None = None, deadline_s: float | None = None
) -> Iterator[Work]:
    """Yields the stage's function, run in its own process. deadline_s: a call that takes longer is killed.

    The function raises ChildRaised, ChildDied or DeadlinePassed if the call fails, StepFailed if the stage cannot be opened.
    """
    child = _Child(stage, torch_threads, shared, deadline_s)
    try:
        yield child
    finally:
        child.close()


def main() -> None:
    """Runs in the child process: opens the stage, then processes batches until standard input closes."""
    from vlpipe.pipeline.engine.worker.open_stage import opened

    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # prints of a stage must not mix with the answers
    path, start = receive(sys.stdin.buffer)
    sys.path[:] = path
    stage, torch_threads, shared = pickle.loads(start)
    with ExitStack() as stack:
        try:
            work = stack.enter_context(opened(stage, torch_threads, shared))
        except Exception as error:
            send(answers, f"{type(error).__name__}: {error}")
            return
        send(answers, None)
        while True:
            try:
                batch = receive(sys.stdin.buffer)
            except EOFError:
                return
            answer = _answer(work, batch, type(stage).__module__)
            try:
                send(answers, answer)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                send(answers, fault_of(error))


def _answer(work: Work, batch: pa.Table, home: str) -> Any:
    """Returns the result, or an infrastructure error, or a Fault for any other exception, which may not survive pickling."""
    try:
        return work(batch)
    except BaseException as error:
        if not is_raised(error):
            raise
        if is_nobodys(error):
            return _portable(error)
        return fault_of(error, home)


def _portable(error: BaseException) -> BaseException:
    """Returns the error if it survives pickling, else a StepFailed with the same text."""
    try:
        back = pickle.loads(_cloudpickled(error))
    except Exception:
        back = None
    return back if type(back) is type(error) else StepFailed(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
