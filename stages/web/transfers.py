"""Runs libcurl's transfers in an asyncio loop.

As `pycurl.AsyncCurlMulti`, in half of its time per transfer: a socket stays registered with the loop from one transfer of
its connection to the next, and the timer is set anew only if it would ring too late.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pycurl


class Ended(NamedTuple):
    """How a transfer ended. code: libcurl's, 0 if the response is complete; message: libcurl's."""

    code: int
    message: str


COMPLETE = Ended(pycurl.E_OK, "")


class Transfers:
    """The transfers of the running loop. max_idle: connections that are kept for later transfers."""

    def __init__(self, max_idle: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._futures: dict[Any, asyncio.Future[Ended]] = {}  # libcurl handle -> its end
        self._reading: set[int] = (
            set()
        )  # sockets registered for reading; `_idle`: those that nobody reads now
        self._writing: set[int] = set()
        self._idle: set[int] = set()
        self._due_s: float | None = None  # loop time at which libcurl wants to be called
        self._alarm: asyncio.TimerHandle | None = None  # rings at that time, or earlier
        self._is_closed = self._calls_soon = False
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_idle)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)

    def start(self, curl: Any) -> asyncio.Future[Ended]:
        """Starts the transfer of a handle; the future is cancelled by `close`."""
        self._multi.add_handle(curl)
        future = self._futures[curl] = self._loop.create_future()
        return future

    def end(self, curl: Any, how: Ended = COMPLETE) -> None:
        """Ends a transfer before its time, if it is still running. Its connection is closed."""
        future = self._futures.pop(curl, None)
        if future is None:
            return
        self._multi.remove_handle(curl)
        if not future.done():
            future.set_result(how)

    def before_socket(self) -> None:
        """Must be called before libcurl makes a socket: its number may be that of one that libcurl has closed since."""
        while self._idle:
            fd = self._idle.pop()
            self._reading.discard(fd)
            self._loop.remove_reader(fd)

    def close(self) -> None:
        """Ends all transfers and closes all connections."""
        self._is_closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for fd in self._reading:
            self._loop.remove_reader(fd)
        for fd in self._writing:
            self._loop.remove_writer(fd)
        for curl, future in self._futures.items():
            self._multi.remove_handle(curl)
            future.cancel()
        self._futures.clear()
        self._multi.close()

    def _on_socket(self, what: int, fd: int, multi: Any, data: Any) -> None:
        """Called by libcurl: it waits for `what` (POLL_IN, POLL_OUT, both or nothing) of a socket from now on."""
        if self._is_closed:
            return
        is_idle = what in (pycurl.POLL_REMOVE, pycurl.POLL_NONE)
        reads, writes = (
            not is_idle and bool(what & pycurl.POLL_IN),
            not is_idle and bool(what & pycurl.POLL_OUT),
        )
        if is_idle and fd in self._reading:
            self._idle.add(fd)  # stays registered: the next transfer probably reads it
        else:
            self._idle.discard(fd)
            if reads and fd not in self._reading:
                self._reading.add(fd)
                self._loop.add_reader(fd, self._on_readable, fd)
            elif not reads and fd in self._reading:
                self._stop_reading(fd)
        if writes and fd not in self._writing:
            self._writing.add(fd)
            self._loop.add_writer(fd, self._act, fd, pycurl.CSELECT_OUT)
        elif not writes and fd in self._writing:
            self._writing.discard(fd)
            self._loop.remove_writer(fd)

    def _on_readable(self, fd: int) -> None:
        if fd in self._idle:  # the server closed the connection, or said something unasked
            self._idle.discard(fd)
            self._stop_reading(fd)
        else:
            self._act(fd, pycurl.CSELECT_IN)

    def _stop_reading(self, fd: int) -> None:
        self._reading.discard(fd)
        self._loop.remove_reader(fd)

    def _on_timer(self, after_ms: int) -> None:
        """Called by libcurl: it wants to be called after this time; -1: not at all. The last wish counts."""
        if self._is_closed:
            return
        self._due_s = None
        if after_ms == 0:
            if not self._calls_soon:
                self._calls_soon = True
                self._loop.call_soon(self._call_now)  # not from within a call of libcurl
        elif after_ms > 0:
            self._due_s = self._loop.time() + after_ms / 1000
            if self._alarm is None or self._alarm.when() > self._due_s:
                self._set_alarm(self._due_s)

    def _set_alarm(self, at_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._due_s is None:
            return
        if self._loop.time() < self._due_s:  # it was moved
            self._set_alarm(self._due_s)
        else:
            self._due_s = None
            self._act(pycurl.SOCKET_TIMEOUT, 0)

    def _call_now(self) -> None:
        self._calls_soon = False
        self._act(pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, fd: int, events: int) -> None:
        """Lets libcurl work on a socket, or on what is due, and ends the transfers that are complete or failed."""
        if self._is_closed:
            return
        try:
            num_running = self._multi.socket_action(fd, events)[1]
        except pycurl.error as error:  # no transfer can go on
            for curl in [*self._futures]:
                self.end(curl, Ended(*error.args))
            return
        if num_running < len(self._futures):
            _, complete, failed = self._multi.info_read()
            for curl in complete:
                self.end(curl)
            for curl, code, message in failed:
                self.end(curl, Ended(code, message))
