"""What a stage keeps in a process between shards, and closes when its step ends."""

from __future__ import annotations

from collections.abc import Callable

_closers: list[Callable[[], None]] = []


def when_step_ends(close: Callable[[], None]) -> None:
    """Has `close` called whenever a step ends, with `--local`: for what a stage keeps in this process between shards.

    A worker of Ray does not learn that; the stage has to close it by itself after a while, too.
    """
    _closers.append(close)


def step_ended() -> None:
    """Called when a step has ended whose shards were computed in this process."""
    for close in _closers:
        close()
