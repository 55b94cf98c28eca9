"""Run a stage's function in a process of its own, so that a row that kills it can be found and named.

Used only after a shard has killed a worker twice: `python -m vlpipe.pipeline.isolated` reads pickled batches from its
standard input and answers on its standard output; it is started again after each death.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import pyarrow as pa
from ray import cloudpickle

from vlpipe.pipeline.errors import StepFailed
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.shared import Address
from vlpipe.pipeline.stage import MapStage, Work


def send(pipe: IO[bytes], value: Any) -> None:
    data = cloudpickle.dumps(value)
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(size, "big")))


class _Child:
    def __init__(self, stage: MapStage, torch_threads: int, shared: Address | None) -> None:
        self._start = (stage, torch_threads, shared)
        self._process: subprocess.Popen[bytes] | None = None

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "vlpipe.pipeline.isolated"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._process.stdin
            assert self._process.stdout
            send(self._process.stdin, (sys.path, cloudpickle.dumps(self._start)))
            opening = receive(self._process.stdout)
            if isinstance(opening, BaseException):  # the stage cannot be opened: that is no row's fault
                raise StepFailed(f"the stage cannot be opened: {type(opening).__name__}: {opening}")
        return self._process

    def __call__(self, batch: pa.Table) -> Out | pa.Table:
        from vlpipe.pipeline.work import ChildDied

        process = self._alive()
        assert process.stdin
        assert process.stdout
        try:
            send(process.stdin, batch)
            result = receive(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            raise ChildDied(f"the process that ran this row alone died with {code}") from None
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def isolated(stage: MapStage, torch_threads: int, shared: Address | None = None) -> Iterator[Work]:
    child = _Child(stage, torch_threads, shared)
    try:
        yield child
    finally:
        child.close()


def main() -> None:
    """The child: open the stage, then answer batch after batch."""
    from vlpipe.pipeline.work import opened

    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # a print in a stage must not end up between the answers
    path, start = receive(sys.stdin.buffer)
    sys.path[:] = path
    stage, torch_threads, shared = pickle.loads(start)
    with ExitStack() as stack:
        try:
            work = stack.enter_context(opened(stage, torch_threads, shared))
        except Exception as error:
            send(answers, error)
            return
        send(answers, None)
        while True:
            try:
                batch = receive(sys.stdin.buffer)
            except EOFError:
                return
            try:
                result: Any = work(batch)
            except Exception as error:  # answered, and raised in the parent
                result = error
            send(answers, result)


if __name__ == "__main__":
    main()
