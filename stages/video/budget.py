"""Limits for decoding one video, and the time and number of errors used so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from vlpipe.pipeline.errors import RowFault

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits for one video. Only time spent decoding counts, not the time the caller works on a frame."""

    deadline_s: float = 600
    max_bad_packets: int = (
        20  # decoding continues after a bad packet, as in players, until there are more than this
    )
    max_pixels: int = 8192 * 4320  # of a frame as stored, as shown, and as requested


class Budget:
    """Counts the decoding time and bad packets of one video, and raises RowFault when a limit is exceeded.

    Reject codes: deadline, too_many_errors, too_many_pixels.
    """

    def __init__(self, video: str, limits: Limits) -> None:
        self.video, self.limits = video, limits
        self.num_bad = 0
        self._spent_s, self._since = 0.0, time.monotonic()

    def check(self) -> None:
        """Raises RowFault (deadline) if decoding has taken more than `deadline_s`; called for every packet."""
        if self._spent_s + time.monotonic() - self._since > self.limits.deadline_s:
            raise RowFault("deadline", f"{self.video}: decoding took more than {self.limits.deadline_s:g} s")

    def bad(self, error: Exception) -> None:
        """Counts a packet that cannot be read or decoded. Raises RowFault (too_many_errors) above the limit."""
        self.num_bad += 1
        if self.num_bad > self.limits.max_bad_packets:
            detail = f"more than {self.limits.max_bad_packets} packets cannot be decoded; the last error: {said(error)}"
            raise RowFault("too_many_errors", f"{self.video}: {detail}")

    def need_pixels(self, width: int, height: int) -> None:
        """Raises RowFault (too_many_pixels) if a frame of this size exceeds the limit."""
        if width * height > self.limits.max_pixels:
            detail = f"a frame has {width} x {height} pixels, the limit is {self.limits.max_pixels} pixels"
            raise RowFault("too_many_pixels", f"{self.video}: {detail}")

    def pause(self) -> None:
        """Stops the clock."""
        self._spent_s += time.monotonic() - self._since

    def go_on(self) -> None:
        """Restarts the clock after `pause`."""
        self._since = time.monotonic()


def said(error: Exception) -> str:
    """Returns FFmpeg's error text without the path, which differs between machines."""
    return str(getattr(error, "strerror", None) or error)[:200]


def need_at_most(video: str, num: int, limit: int, name: str) -> None:
    """Raises RowFault (too_many_windows) if `num`, the frames or windows that a row needs, exceeds `limit`.

    video: its path; name: of the parameter that sets `limit`; both for the error text.
    """
    if num > limit:
        raise RowFault(
            "too_many_windows",
            f"{video}: the row needs more than {limit} {name.removeprefix('max_')}, the limit that `{name}` sets",
        )


def at_most(items: Iterable[T], video: str, limit: int, name: str) -> Iterator[T]:
    """Yields the items. Raises RowFault (too_many_windows) at the item after the first `limit`, as `need_at_most`."""
    for num, item in enumerate(items, 1):
        need_at_most(video, num, limit, name)
        yield item
