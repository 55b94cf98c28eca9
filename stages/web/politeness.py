"""Who may ask which host now: one gate for all workers of a step, so that its limits hold however many there are.

The gate lives in the driver (`pipeline.shared`); a worker asks it for a turn at a host before each request and gives the
turn back after it. Routing hosts to workers instead would tear shards apart: shard k's rows are fetched where shard k is.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from vlpipe.pipeline.engine.records.forgotten import hashed
from vlpipe.pipeline.errors import RowFault, VlpipeError, explain
from vlpipe.pipeline.inspect.opted_out import hash_of_url
from vlpipe.pipeline.service import Address, Peer, connect
from vlpipe.stages.web.opted_out import OptedOut

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


@dataclass(eq=False, slots=True)
class _Wish:
    """A turn that is waited for or held."""

    peer: Peer
    key: int
    host: _Host
    hash: str
    began: float = 0.0


@dataclass(eq=False, slots=True)
class _Host:
    waiting: deque[_Wish] = field(default_factory=deque)
    leases: dict[_Wish, None] = field(default_factory=dict)  # the oldest first
    next_start: float = 0.0
    rest_since: float = 0.0
    rest_until: float = 0.0
    strikes: int = 0  # rests in a row
    timer: asyncio.TimerHandle | None = None

    def is_idle(self, now: float) -> bool:
        """Nothing is lost when we forget it."""
        return not (self.waiting or self.leases) and max(self.next_start, self.rest_until) <= now


class HostGate:
    """The service. From a worker, a list: [key, host, hash of the URL] wants a turn; a key alone gives it back, all well;
    [key, struck, wanted_s, how the URL said no or null, hashes of it and of the URL that led there] gives it back as well.

    To a worker, a list: a key is granted (or, after a no: that is kept for good); [key, one of WHYS, text] is not.
    opted_out: what the root remembers of who said no. counts: whether this step's rules take such words for a no.
    """

    def __init__(
        self,
        rules: Politeness,
        opted_out: OptedOut | None = None,
        counts: Callable[[str], bool] = lambda evidence: True,
    ) -> None:
        self._rules, self._counts = rules, counts
        self._opted_out = opted_out or OptedOut()
        self._opted_out.load()
        self._hosts: dict[str, _Host] = {}
        self._wishes: dict[Peer, dict[int, _Wish]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._sweep_at = FEW_HOSTS

    def heard(self, peer: Peer, message: Any) -> None:
        wishes = self._wishes.setdefault(peer, {})
        touched: dict[_Host, None] = {}
        for item in message:
            if isinstance(item, int):
                wish = self._given_back(wishes, item, False, 0.0)
            elif len(item) == 3:
                wish = self._wanted(peer, *item)
                wishes[wish.key] = wish
            else:
                wish = self._given_back(wishes, *item[:3])
                if item[3] is not None:
                    self._said_no(peer, item[0], *item[3:])
            if wish is not None:
                touched[wish.host] = None
        self._grant(touched)
        if len(self._hosts) > self._sweep_at:
            now = monotonic()
            self._hosts = {name: host for name, host in self._hosts.items() if not host.is_idle(now)}
            self._sweep_at = 2 * len(self._hosts) + FEW_HOSTS

    def left(self, peer: Peer) -> None:
        gone = self._wishes.pop(peer, {})
        touched = {wish.host: None for wish in gone.values()}
        for host in touched:
            host.waiting = deque(wish for wish in host.waiting if wish.peer is not peer)
            host.leases = {wish: None for wish in host.leases if wish.peer is not peer}
        self._grant(touched)

    def _wanted(self, peer: Peer, key: int, name: str, hash_: str) -> _Wish:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        wish = _Wish(peer, key, host, hash_)
        host.waiting.append(wish)
        return wish

    def _given_back(self, wishes: dict[int, _Wish], key: int, struck: bool, wanted_s: float) -> _Wish | None:
        wish = wishes.pop(key, None)
        if wish is None:  # it was taken away
            return None
        host = wish.host
        if wish not in host.leases:  # given up before it was granted
            host.waiting.remove(wish)
            return wish
        del host.leases[wish]
        if not struck:
            if wish.began >= host.rest_since:
                host.strikes = 0
        elif wish.began >= host.rest_since:  # requests that were under way together are one strike
            now = monotonic()
            own_s = self._rules.backoff_s * 2.0 ** min(host.strikes, MAX_STRIKES) * random.uniform(0.5, 1.0)
            host.strikes += 1
            host.rest_since, host.rest_until = now, now + max(wanted_s, own_s)
        else:
            host.rest_until = max(host.rest_until, monotonic() + wanted_s)
        return wish

    def _said_no(self, peer: Peer, key: int, evidence: str, hashes: list[str]) -> None:
        """The worker waits until this is kept: no shard may say so before the root does."""
        for hash_ in hashes:
            self._opted_out.note(hash_, evidence)
        task = asyncio.ensure_future(self._keep(peer, key))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, peer: Peer, key: int) -> None:
        try:
            await self._opted_out.kept()
        except Exception as error:  # the worker's attempt fails with it
            peer.send([[key, "not_kept", explain(error)]])
        else:
            peer.send([key])

    def _grant(self, hosts: Iterable[_Host]) -> None:
        out: dict[Peer, list[Any]] = {}
        for host in hosts:
            if host.waiting:
                self._pump(host, out)
        for peer, answers in out.items():
            peer.send(answers)

    def _pump(self, host: _Host, out: dict[Peer, list[Any]]) -> None:
        """Answer those who wait for a host, as far as its limits allow; come back when they will allow more."""
        now = monotonic()
        if host.timer:
            host.timer.cancel()
            host.timer = None
        too_long = host.rest_until - now > self._rules.max_wait_s
        while host.waiting:
            wish = host.waiting[0]
            no = next(filter(self._counts, self._opted_out.said(wish.hash)), None)
            answer: Any
            if no is not None or too_long:
                answer = [wish.key, "busy", ""] if no is None else [wish.key, "opt_out", no]
                del self._wishes[wish.peer][wish.key]
            elif (at := max(host.next_start, host.rest_until, self._free_at(host, now))) > now:
                host.timer = asyncio.get_running_loop().call_later(at - now, self._grant, (host,))
                return
            else:
                answer, wish.began = wish.key, now
                host.leases[wish] = None
                host.next_start = now + self._rules.host_interval_s
            host.waiting.popleft()
            out.setdefault(wish.peer, []).append(answer)

    def _free_at(self, host: _Host, now: float) -> float:
        """When a place is free at the latest; leases that ran out are taken away."""
        while len(host.leases) >= self._rules.per_host:
            oldest = next(iter(host.leases))
            if oldest.began + self._rules.lease_s > now:
                return oldest.began + self._rules.lease_s
            del host.leases[oldest]
            self._wishes[oldest.peer].pop(oldest.key, None)
        return now


class HostBusy(Exception):
    """The host wants a longer rest than we are ready to wait."""


WHYS: dict[str, Callable[[str], Exception]] = {
    "busy": HostBusy,
    "opt_out": lambda text: RowFault("opt_out", text),
    "not_kept": lambda text: VlpipeError(f"an opt-out could not be written into the root: {text}"),
}


class Turn:
    """What a worker waits for (`async with`), and tells the gate when it is over: HostBusy when there will be none soon,
    RowFault when the URL has opted out."""

    __slots__ = ("_host", "_key", "_turns", "_url", "led_here", "opted_out", "struck", "wanted_s")

    def __init__(self, turns: Turns, host: str, url: str) -> None:
        self._turns, self._host, self._url, self._key = turns, host, url, 0
        self.struck = False  # the server asked us to slow down,
        self.wanted_s = 0.0  # for so long; 0: it named no time
        self.opted_out: str | None = None  # the URL said no, with these words;
        self.led_here = ""  # and the URL that was listed is not to be asked again, either

    async def __aenter__(self) -> Turn:
        self._key = self._turns.new_key()
        try:
            await self._turns.told(self._key, [self._key, self._host, _hash(self._url)])
        except asyncio.CancelledError:
            self._turns.tell(self._key)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.opted_out is not None:  # over for us when it is kept
            hashes = [*{_hash(self._url): None, _hash(self.led_here): None}]
            said = [self._key, self.struck, self.wanted_s, self.opted_out, [one for one in hashes if one]]
            await self._turns.told(self._key, said)
        elif self.struck:
            self._turns.tell([self._key, True, self.wanted_s, None, []])
        else:
            self._turns.tell(self._key)


def _hash(url: str) -> str:
    """`hash_of_url`, quicker for a URL as it is sent: what follows the scheme is its canonical form, but for ports."""
    _, _, rest = url.partition("://")
    netloc = rest.partition("/")[0]
    if ":" in netloc or netloc[-1:] == ".":
        return hash_of_url(url)
    return hashed("url", rest) if rest else ""


class Turns:
    """A worker's end of the gate; lives in the crawler's loop. `send` and `close` are those of the connection."""

    send: Callable[[Any], None]
    close: Callable[[], None]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._out: list[Any] = []
        self._lost = False
        self._key = 0

    def turn(self, host: str, url: str = "") -> Turn:
        """`async with turns.turn(host, url) as turn:`; the URL as it is sent."""
        return Turn(self, host, url)

    def new_key(self) -> int:
        self._key += 1
        return self._key

    def tell(self, item: Any) -> None:
        if not self._out:
            self._loop.call_later(GATHER_S, self._flush)
        self._out.append(item)

    async def told(self, key: int, item: Any) -> None:
        """Tell, and wait for the answer to the key."""
        if self._lost:
            raise _hung_up()
        answer = self._asked[key] = self._loop.create_future()
        self.tell(item)
        try:
            await answer
        finally:
            del self._asked[key]

    def heard(self, message: Any) -> None:
        for item in message:
            key, why, text = (item, "", "") if isinstance(item, int) else item
            answer = self._asked.get(key)
            if answer is not None and not answer.done():
                answer.set_exception(WHYS[why](text)) if why else answer.set_result(None)

    def lost(self) -> None:
        self._lost = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_hung_up())

    def _flush(self) -> None:
        self._out, out = [], self._out
        self.send(out)


def _hung_up() -> VlpipeError:
    return VlpipeError("the run's driver hung up: without it the workers cannot share a host's limits")


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
