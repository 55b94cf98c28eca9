"""Ctrl-C, SIGTERM and a closed terminal stop a run in the same way, also where the exception they raise is lost.

Python drops one that is raised in a finaliser or in a callback of a C library, and a stage may catch it: a run on Ray went
on once and ended well. So the loop asks whether it came.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The run is to stop. `code`: the exit code by custom, 128 + the signal: 130, 143 or 129."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def code(self) -> int:
        return 128 + self.number


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """In the main thread: each of the signals raises Interrupted; what is yielded raises it again if one has come.

    A SIGHUP that is ignored (nohup) stays so.
    """
    came: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Interrupted(number)

    def check() -> None:
        if came:
            raise Interrupted(came[0])

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler is not signal.SIG_IGN:
            signal.signal(number, heard)
    try:
        yield check
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: installed by C code, which cannot be put back from here
                signal.signal(number, handler)
