"""Reads the packets of a video stream forward, decoding only what is needed for the requested times.

Packets carry the start times of their frames before decoding. They are therefore read a little ahead: the decoder skips
frames that are neither requested nor referenced by others (half of the frames in common H.264), and decoding stops at the
requested frame, not one later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.budget import Budget, said
from vlpipe.stages.video.key_frames import COUNTED, MATROSKA
from vlpipe.stages.video.open_video import need_av, packets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet as AnyPacket
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    Packet = AnyPacket[VideoStream]

AHEAD = 32  # packets: twice the max reordering distance of H.264 and HEVC
# Containers whose packets have exact start times; for others FFmpeg guesses them.
STAMPED = ("mov,mp4", MATROSKA)


class Walk:
    """A forward reader of a video stream: seeks, and decodes up to the frame shown at a requested time.

    Times are in ticks, units of the stream's time base. Frames with a negative start, cut off by an edit list, are skipped.
    Raises RowFault: deadline, too_many_errors, broken_video (no frame can be decoded, or seeking fails).
    """

    def __init__(self, opened: InputContainer, stream: VideoStream, budget: Budget) -> None:
        self._container, self._stream, self._budget = opened, stream, budget
        self._context = stream.codec_context
        self._error: type[Exception] = need_av().FFmpegError
        self._is_counted = opened.format.name in COUNTED
        self._is_matroska = opened.format.name.startswith(MATROSKA)
        self._stamped = opened.format.name.startswith(STAMPED)  # False once a packet contradicts it
        self._may_skip = True  # whether the decoder may skip frames; False once a packet is broken
        self.end: int | None = None  # end of the last frame, once it is known
        self._reset()
        self._fill(0)
        self.delay = self._index_delay()
        while not self._ready and not self._drained:
            self._step(0)
        if not self._ready:
            raise RowFault("broken_video", f"{budget.video}: no frame can be decoded")
        self.first, self.first_frame = self._ready[0]
        self._start = min(0, self.first - self.delay)  # a seek to this tick goes to the start

    def _reset(self) -> None:
        """Starts reading at the container's current position."""
        self._packets: Iterator[Packet] = packets(self._container, self._stream, self._budget)
        self._ahead: deque[Packet] = deque()  # read, not yet decoded
        self._known: list[
            int
        ] = []  # start times of the frames whose packets were read, from the shown one on
        self._ready: deque[tuple[int, VideoFrame]] = deque()  # (start, frame): decoded, not yet shown
        self._shown: VideoFrame | None = None
        self._shown_at = -1  # its start
        self._sent: list[
            int
        ] = []  # a heap: start times of frames in the decoder, which outputs them in order (for COUNTED)
        self._read_all = self._drained = False
        self._last_dts: int | None = None
        self._floor = 0
        self.reached = -1  # the latest start of a frame sent to the decoder

    def _index_delay(self) -> int:
        """Returns the ticks from a key frame's time in the index to its start.

        Indices store decoding times, except in Matroska: the result is pts - dts of the first packet, or 0 if unknown.
        """
        first = self._ahead[0] if self._ahead else None
        if first is None or first.pts is None or first.dts is None or self._is_matroska:
            return 0
        return first.pts - first.dts

    def can_reach(self, tick: int) -> bool:
        """Returns whether the frame shown at `tick` can be reached by reading on, without a seek."""
        if tick < max(self._floor, self._shown_at):
            return False
        if self._drained and not self._is_out():  # it was drained early, before a seek
            return self._want(tick) == self._shown_at
        return True

    def seek(self, tick: int) -> None:
        """Seeks to the last readable key frame that starts at or before `tick`."""
        step = max(1, round(1 / self._stream.time_base)) if self._stream.time_base else 1
        aim = self._start if self._is_counted else tick
        while True:
            aim = max(aim, self._start)
            key = self._key_from(aim)
            if aim == self._start or (key is not None and key <= tick):
                break
            aim, step = aim - step, 2 * step  # the index has decoding times only, or the file is truncated
        self._floor = max(0, key) if key is not None and key <= tick else 0

    def frame_at(self, tick: int, next_key: int = -1) -> VideoFrame | None:
        """Returns the last frame that starts at or before `tick`, or None if no such frame can be decoded.

        Call `seek` first unless `can_reach`. next_key: start of the key frame before the next requested time. If it is after
        `tick`, a seek to it comes next, so the decoder may be told that the stream ends, and outputs the frame at once.
        """
        frame = self._run_to(tick, next_key)
        while frame is None and self._floor > self.first:  # nothing can be decoded from this key frame on
            self.seek(self._floor - 1)
            frame = self._run_to(tick, next_key)
        return frame

    def _run_to(self, tick: int, next_key: int) -> VideoFrame | None:
        num_bad = self._budget.num_bad
        while not self._is_found(tick):
            want = self._want(tick)
            leave = next_key > tick and next_key > self.reached
            if leave and want is not None and all(packet.pts != want for packet in self._ahead):
                self._drain()
            else:
                self._step(tick)
        if self._budget.num_bad > num_bad and self._may_skip:
            self._may_skip = False  # decode again: a skipped frame may be the best one available
            self.seek(tick)
            return self._run_to(tick, next_key)
        return self._shown

    def _is_found(self, tick: int) -> bool:
        while self._ready and self._ready[0][0] <= tick:
            begin, frame = self._ready.popleft()
            if begin >= self._shown_at:
                self._shown_at, self._shown = begin, frame
                del self._known[: bisect_left(self._known, begin)]
        if self._ready:
            return True
        if self._is_last():
            self.end = self._end()
            return True
        return self._drained or (self._shown is not None and self._want(tick) == self._shown_at)

    def _is_last(self) -> bool:
        """Returns whether the shown frame is known to be the last one of the video."""
        if self._shown is None or not self._read_all:
            return False
        known_last = self._stamped and bool(self._known) and self._known[-1] == self._shown_at
        return known_last or self._is_out()

    def _is_out(self) -> bool:
        return self._drained and self._read_all and not self._ahead

    def _end(self) -> int:
        """Returns the end of the shown frame, by its own duration, else the mean frame rate, else one tick."""
        assert self._shown is not None
        rate, base = self._stream.average_rate or self._stream.guessed_rate, self._stream.time_base
        length = self._shown.duration or (round(1 / (rate * base)) if rate and base else 0)
        return self._shown_at + max(1, length)

    def _want(self, tick: int) -> int | None:
        """Returns the start of the frame shown at `tick`, from the packets; None if not known (yet)."""
        self._fill(tick)
        if not self._stamped or not (self._read_all or self._has_read_past(tick)):
            return None
        at = bisect_right(self._known, tick)
        return self._known[at - 1] if at else None

    def _step(self, tick: int) -> None:
        """Sends one packet to the decoder, which may skip its frame if a later one is shown at `tick`."""
        self._fill(tick)
        if not self._ahead:
            self._drain()
            return
        packet = self._ahead.popleft()
        begin = begin_of(packet)
        if begin is not None:
            self.reached = max(self.reached, begin)
            if self._is_counted:
                heappush(self._sent, begin)
        self._context.skip_frame = "NONREF" if self._is_passed_over(begin, tick) else "DEFAULT"
        self._decode(packet)

    def _is_passed_over(self, begin: int | None, tick: int) -> bool:
        """Returns whether a frame after the one that starts at `begin` is known to start at or before `tick`.

        False if `begin` is None, start times are not reliable, or a packet was broken: then no frame may be skipped.
        """
        if begin is None or not self._stamped or not self._may_skip:
            return False
        at = bisect_right(self._known, tick)
        return at > 0 and self._known[at - 1] > begin

    def _drain(self) -> None:
        self._drained = True
        self._decode(None)

    def _decode(self, packet: Packet | None) -> None:
        try:
            frames = self._context.decode(packet)
        except self._error as error:
            self._budget.bad(error)
            return
        for frame in frames:
            begin = heappop(self._sent) if self._is_counted and self._sent else begin_of(frame)
            if begin is not None and begin >= self._floor:
                self._ready.append((begin, frame))

    def _has_read_past(self, tick: int) -> bool:
        """Returns whether the frames of all packets not yet read start after `tick`.

        Packets come in decoding order, and no frame starts before it is decoded.
        """
        return self._last_dts is not None and self._last_dts > tick

    def _fill(self, tick: int) -> None:
        while not self._read_all and len(self._ahead) < AHEAD:
            if self._ahead and self._has_read_past(tick):
                return
            packet = next(self._packets, None)
            if packet is None:
                self._read_all = True
            else:
                self._take(packet)

    def _take(self, packet: Packet) -> None:
        self._ahead.append(packet)
        self._last_dts = packet.dts
        if packet.pts is None or (packet.dts is not None and packet.pts < packet.dts):
            self._stamped = False
        elif packet.pts >= 0 and not packet.is_discard:
            insort(self._known, packet.pts)

    def _key_from(self, aim: int) -> int | None:
        """Seeks to `aim`; returns the start of the key frame found there, or None if nothing can be read there.

        Raises RowFault (broken_video) if a seek to the start fails.
        """
        try:
            self._container.seek(aim, stream=self._stream)
        except self._error as error:
            if aim == self._start:
                detail = f"{self._budget.video}: seeking failed: {said(error)}"
                raise RowFault("broken_video", detail) from error
            return None
        self._reset()
        for packet in self._packets:
            if packet.is_keyframe or aim == self._start:
                self._take(packet)
                return begin_of(packet)
        return None


def begin_of(one: Packet | VideoFrame) -> int | None:
    """Returns the start of a packet or frame in ticks; its decoding time if the container has no other."""
    return one.pts if one.pts is not None else one.dts
