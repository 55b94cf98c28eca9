"""What one video may cost, and how much of it is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vlpipe.pipeline.errors import RowFault


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Time counts while decoding, not while the caller works on a frame."""

    deadline_s: float = 600
    max_bad_packets: int = (
        20  # decoding goes on after a bad packet, as players do, until there were more than these
    )
    max_pixels: int = 8192 * 4320  # of a frame, as stored, as shown and as asked for


class Budget:
    """Time and errors left for one video. RowFault: deadline, too_many_errors, too_many_pixels."""

    def __init__(self, video: str, limits: Limits) -> None:
        self.video, self.limits = video, limits
        self.num_bad = 0
        self._spent_s, self._since = 0.0, time.monotonic()

    def check(self) -> None:
        """Called for every packet."""
        if self._spent_s + time.monotonic() - self._since > self.limits.deadline_s:
            raise RowFault(
                "deadline", f"{self.video}: not done after {self.limits.deadline_s:g} s of decoding"
            )

    def bad(self, error: Exception) -> None:
        """One more packet that cannot be read or decoded."""
        self.num_bad += 1
        if self.num_bad > self.limits.max_bad_packets:
            detail = f"more than {self.limits.max_bad_packets} bad packets, the last: {said(error)}"
            raise RowFault("too_many_errors", f"{self.video}: {detail}")

    def need_pixels(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            detail = f"{width} x {height}, the limit is {self.limits.max_pixels} pixels"
            raise RowFault("too_many_pixels", f"{self.video}: {detail}")

    def pause(self) -> None:
        self._spent_s += time.monotonic() - self._since

    def go_on(self) -> None:
        self._since = time.monotonic()


def said(error: Exception) -> str:
    """FFmpeg's words without the path, which differs between machines."""
    return str(getattr(error, "strerror", None) or error)[:200]
