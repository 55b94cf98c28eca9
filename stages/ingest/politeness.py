"""Who may ask which host now: one gate for all workers of a step, so that its limits hold however many there are.

The gate lives in the driver (`pipeline.shared`); a worker asks it for a turn at a host before each request and gives the
turn back after it. Routing hosts to workers instead would tear shards apart: shard k's rows are fetched where shard k is.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.shared import Address, Peer, connect

GATHER_S = 0.001  # messages are collected for this long: one line for many of them
MAX_STRIKES = 30  # 2 ** 30 s is for ever
FEW_HOSTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Politeness:
    """per_host: requests at once; host_interval_s: from start to start; max_wait_s: a longer rest is for a later run.

    backoff_s: first rest after a 429 or 503 that names no time, doubling with each in a row; lease_s: a turn that is
    not given back for so long is lost (a worker that is stopped; one that died gives back what it has at once).
    """

    per_host: int
    host_interval_s: float
    max_wait_s: float
    backoff_s: float
    lease_s: float


@dataclass
class _Host:
    waiting: deque[tuple[Peer, int]] = field(default_factory=deque)
    leases: dict[tuple[Peer, int], float] = field(default_factory=dict)  # turn -> when it began
    next_start: float = 0.0
    rest_since: float = 0.0
    rest_until: float = 0.0
    strikes: int = 0  # rests in a row
    timer: asyncio.TimerHandle | None = None

    def is_idle(self, now: float) -> bool:
        """Nothing is lost when we forget it."""
        return not (self.waiting or self.leases) and max(self.next_start, self.rest_until) <= now


class HostGate:
    """The service. From a worker: lists of [key, host, digest of the URL] (wants a turn) and
    [key, struck, wanted_s, how the URL said no or null] (gives it back).

    To a worker: lists of [key, granted]; false: the host wants a longer rest than `max_wait_s`; text: the URL has said no.
    """

    def __init__(self, rules: Politeness) -> None:
        self._rules = rules
        self._hosts: dict[str, _Host] = {}
        self._turns: dict[
            tuple[Peer, int], tuple[str, str]
        ] = {}  # waiting or leased -> host, digest of the URL
        self._opted_out: dict[str, str] = {}  # digest of a URL that said no -> how; it is not asked again
        self._sweep_at = FEW_HOSTS

    def heard(self, peer: Peer, message: Any) -> None:
        touched: dict[str, None] = {}
        for key, *rest in message:
            if len(rest) == 2:
                name, digest = rest
                self._turns[peer, key] = name, digest
                self._hosts.setdefault(name, _Host()).waiting.append((peer, key))
                touched[name] = None
            elif (turn := self._turns.pop((peer, key), None)) is not None:
                name, digest = turn
                struck, wanted_s, evidence = rest
                if evidence is not None:
                    self._opted_out[digest] = evidence
                self._given_back(self._hosts[name], (peer, key), struck, wanted_s)
                touched[name] = None
        self._grant(touched)
        if len(self._hosts) > self._sweep_at:
            now = _now()
            self._hosts = {name: host for name, host in self._hosts.items() if not host.is_idle(now)}
            self._sweep_at = 2 * len(self._hosts) + FEW_HOSTS

    def left(self, peer: Peer) -> None:
        gone = [turn for turn in self._turns if turn[0] is peer]
        touched = dict.fromkeys(self._turns.pop(turn)[0] for turn in gone)
        for name in touched:
            host = self._hosts[name]
            host.waiting = deque(turn for turn in host.waiting if turn[0] is not peer)
            host.leases = {turn: at for turn, at in host.leases.items() if turn[0] is not peer}
        self._grant(touched)

    def _given_back(self, host: _Host, turn: tuple[Peer, int], struck: bool, wanted_s: float) -> None:
        began = host.leases.pop(turn, None)
        if began is None:  # it was taken away, or never granted
            host.waiting = deque(other for other in host.waiting if other != turn)
            return
        if not struck:
            host.strikes = 0 if began >= host.rest_since else host.strikes
            return
        if began >= host.rest_since:  # requests that were under way together are one strike
            now = _now()
            own_s = self._rules.backoff_s * 2.0 ** min(host.strikes, MAX_STRIKES) * random.uniform(0.5, 1.0)
            host.strikes += 1
            host.rest_since, host.rest_until = now, now + max(wanted_s, own_s)
        else:
            host.rest_until = max(host.rest_until, _now() + wanted_s)

    def _grant(self, names: dict[str, None]) -> None:
        out: dict[Peer, list[tuple[int, bool | str]]] = {}
        for name in names:
            for (peer, key), granted in self._pump(name):
                out.setdefault(peer, []).append((key, granted))
        for peer, answers in out.items():
            peer.send(answers)

    def _pump(self, name: str) -> Iterator[tuple[tuple[Peer, int], bool | str]]:
        """Answer those who wait for a host, as far as its limits allow; come back when they will allow more.

        True: ask now; False: the host rests too long; text: the URL has opted out since, with these words.
        """
        host, now = self._hosts[name], _now()
        if host.timer:
            host.timer.cancel()
            host.timer = None
        if host.rest_until - now > self._rules.max_wait_s:
            for turn in host.waiting:
                del self._turns[turn]
                yield turn, False
            host.waiting.clear()
        while host.waiting:
            known = self._opted_out.get(self._turns[host.waiting[0]][1])
            if known is not None:
                turn = host.waiting.popleft()
                del self._turns[turn]
                yield turn, known
                continue
            at = max(host.next_start, host.rest_until, self._free_at(host, now))
            if at > now:
                loop = asyncio.get_running_loop()
                host.timer = loop.call_later(at - now, self._grant, {name: None})
                return
            turn = host.waiting.popleft()
            host.leases[turn] = now
            host.next_start = now + self._rules.host_interval_s
            yield turn, True

    def _free_at(self, host: _Host, now: float) -> float:
        """When a place is free at the latest; leases that ran out are taken away."""
        if len(host.leases) < self._rules.per_host:
            return now
        for turn in [t for t, began in host.leases.items() if began + self._rules.lease_s <= now]:
            del host.leases[turn]
            self._turns.pop(turn, None)
        if len(host.leases) < self._rules.per_host:
            return now
        return min(host.leases.values()) + self._rules.lease_s


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Turn:
    """Told by its holder: the server asked us to slow down, for so long (0: it named no time)."""

    struck: bool = False
    wanted_s: float = 0.0
    opted_out: str | None = None  # the URL said no, with these words


class HostBusy(Exception):
    """The host wants a longer rest than we are ready to wait."""


class Turns:
    """A worker's end of the gate; lives in the crawler's loop. `send` and `close` are those of the connection."""

    send: Callable[[Any], None]
    close: Callable[[], None]

    def __init__(self) -> None:
        self._asked: dict[int, asyncio.Future[bool | str]] = {}
        self._out: list[list[Any]] = []
        self._lost = False
        self._next = 0

    @asynccontextmanager
    async def turn(self, host: str, url: str = "") -> AsyncIterator[Turn]:
        """Wait for a turn at the host; HostBusy when there will be none soon, RowFault when the URL has opted out."""
        if self._lost:
            self._fail(None)
        self._next += 1
        key, mine = self._next, Turn()
        answer = self._asked[key] = asyncio.get_running_loop().create_future()
        self._put([key, host, hashlib.sha256(url.encode()).hexdigest()[:32] if url else ""])
        granted: bool | str = True
        try:
            granted = await answer
            if isinstance(granted, str):
                raise RowFault("opt_out", granted)
            if not granted:
                raise HostBusy(host)
            yield mine
        finally:
            self._asked.pop(key, None)
            if granted is True:
                self._put([key, mine.struck, mine.wanted_s, mine.opted_out])

    def heard(self, message: Any) -> None:
        for key, granted in message:
            answer = self._asked.get(key)
            if answer is not None and not answer.done():
                answer.set_result(granted)

    def lost(self) -> None:
        self._lost = True
        for answer in self._asked.values():
            if not answer.done():
                self._fail(answer)

    def _fail(self, answer: asyncio.Future[bool | str] | None) -> None:
        error = VlpipeError("the run's driver hung up: without it the workers cannot share a host's limits")
        if answer is None:
            raise error
        answer.set_exception(error)

    def _put(self, message: list[Any]) -> None:
        if not self._out:
            asyncio.get_running_loop().call_later(GATHER_S, self._flush)
        self._out.append(message)

    def _flush(self) -> None:
        self._out, out = [], self._out
        self.send(out)


@dataclass(eq=False)
class _Here:
    """The gate's view of a worker in its own process."""

    turns: Turns

    def send(self, message: Any) -> None:
        self.turns.heard(message)


async def join(where: Address | None, rules: Politeness) -> Turns:
    """Turns of the run's gate, or of one of our own outside a run."""
    turns = Turns()
    if where is None:
        gate, here = HostGate(rules), _Here(turns)
        turns.send, turns.close = (lambda message: gate.heard(here, message)), (lambda: gate.left(here))
    else:
        line = await connect(where, turns.heard, turns.lost)
        turns.send, turns.close = line.send, line.close
    return turns
