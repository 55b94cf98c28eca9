"""Stops a run on Ctrl-C, SIGTERM or a closed terminal, even if the exception that the signal raises is lost.

Python drops an exception raised in a finaliser or in a callback of a C library, and a stage may catch it; for this reason
a run on Ray once continued to its end. So the run loop also checks whether a signal has arrived.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops the run. code: the conventional exit code, 128 + signal number: 130, 143 or 129."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def code(self) -> int:
        return 128 + self.number


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Makes each signal raise Interrupted in the main thread. Yields a function that raises it too if a signal has arrived.

    A library may catch it and raise its own KeyboardInterrupt, which names no signal: Ray does while it waits. Such an
    exception leaves the block as Interrupted. An ignored SIGHUP (nohup) stays ignored.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Interrupted(number)

    def check() -> None:
        if came:
            raise Interrupted(came[0])

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield check
    except KeyboardInterrupt:
        check()
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: installed by C code, cannot be restored from Python
                signal.signal(number, handler)
