"""Ctrl-C stops a run also where the exception it raises is lost.

Python drops one that is raised in a finaliser or in a callback of a C library, and a stage may catch it: a run on Ray went
on once and ended well. So the loop asks whether it came.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """In the main thread: SIGINT raises KeyboardInterrupt, as ever; what is yielded raises it again if it has come."""
    came: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
