"""Limits requests per host, with one gate for all workers of a step, so that limits do not depend on their number.

The gate (`HostGate`) runs in the driver (`pipeline.service`). A turn is the permission to send one HTTP request to a host:
a worker requests it from the gate before each request and returns it afterwards. Hosts are not assigned to workers, since
all rows of a shard are fetched by one worker.
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
from vlpipe.pipeline.service import Address, Peer
from vlpipe.pipeline.services.line import connect
from vlpipe.stages.web.opted_out import OptedOut

GATHER_S = 0.001  # messages are collected for this long and sent together
MAX_STRIKES = 30  # 2 ** 30 s is practically forever
FEW_HOSTS = 10_000  # idle hosts are removed only above this number


@dataclass(frozen=True, kw_only=True)
class Politeness:
    """Limits per host.

    per_host: max concurrent requests. host_interval_s: min time between the starts of two requests. max_wait_s: if a host
    asks for a longer pause, its URLs are rejected as host_busy. backoff_s: min pause after a 429 or 503
    (Retry-After may ask for more), times a random 0.5 to 1; it doubles with each further one in a row. lease_s: a turn that
    is not returned after this time is revoked (its worker hangs; turns of a worker that died are returned at once).
    """

    per_host: int
    host_interval_s: float
    max_wait_s: float
    backoff_s: float
    lease_s: float


@dataclass(eq=False, slots=True)
class _Wish:
    """A turn that a worker (`peer`) waits for or holds. hash: of the URL; began: when it was granted (monotonic s)."""

    peer: Peer
    key: int
    host: _Host
    hash: str
    began: float = 0.0


@dataclass(eq=False, slots=True)
class _Host:
    waiting: deque[_Wish] = field(default_factory=deque)
    leases: dict[_Wish, None] = field(default_factory=dict)  # oldest first
    next_start: float = 0.0
    rest_since: float = 0.0
    rest_until: float = 0.0
    strikes: int = 0  # pauses in a row, each after a 429 or 503
    timer: asyncio.TimerHandle | None = None

    def is_idle(self, now: float) -> bool:
        """Returns whether the host has no state worth keeping and can be removed."""
        return not (self.waiting or self.leases) and max(self.next_start, self.rest_until) <= now


class HostGate:
    """The service that grants turns at hosts. Messages are lists of items; a turn has a key, an integer.

    From a worker: [key, host, hash of the URL] requests a turn. `key` returns it after success; otherwise [key, struck,
    wanted_s, evidence, hashes] returns it, with the fields of `Turn`; evidence: of an opt-out, or null; hashes: of the
    requested and of the listed URL. To a worker: `key` means that the turn is granted, or that the opt-out is stored;
    [key, why, text] that it is refused, or that storing failed. why: a key of WHYS.

    opted_out: the root's record of opt-outs. counts: returns whether evidence is an opt-out under this step's rules.
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
        """Handles a message of a worker: a list of items as above."""
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
                    self._note_opt_out(peer, item[0], *item[3:])
            if wish is not None:
                touched[wish.host] = None
        self._grant(touched)
        if len(self._hosts) > self._sweep_at:
            now = monotonic()
            self._hosts = {name: host for name, host in self._hosts.items() if not host.is_idle(now)}
            self._sweep_at = 2 * len(self._hosts) + FEW_HOSTS

    def left(self, peer: Peer) -> None:
        """Takes back all turns of a worker that disconnected."""
        wishes = self._wishes.pop(peer, {})
        touched = {wish.host: None for wish in wishes.values()}
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
        if wish is None:  # the lease expired and was revoked
            return None
        host = wish.host
        if wish not in host.leases:  # cancelled before it was granted
            host.waiting.remove(wish)
            return wish
        del host.leases[wish]
        if not struck:
            if wish.began >= host.rest_since:
                host.strikes = 0
        elif wish.began >= host.rest_since:  # concurrent requests count as one strike
            now = monotonic()
            own_s = self._rules.backoff_s * 2.0 ** min(host.strikes, MAX_STRIKES) * random.uniform(0.5, 1.0)
            host.strikes += 1
            host.rest_since, host.rest_until = now, now + max(wanted_s, own_s)
        else:
            host.rest_until = max(host.rest_until, monotonic() + wanted_s)
        return wish

    def _note_opt_out(self, peer: Peer, key: int, evidence: str, hashes: list[str]) -> None:
        """Records an opt-out. The worker waits until the root has it, so no shard reports it earlier."""
        for hash_ in hashes:
            self._opted_out.note(hash_, evidence)
        task = asyncio.ensure_future(self._keep(peer, key))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, peer: Peer, key: int) -> None:
        try:
            await self._opted_out.kept()
        except Exception as error:  # makes the worker's attempt fail
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
        """Answers the requests waiting for a host as far as its limits allow; schedules the next call for the rest."""
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
        """Returns when `per_host` allows the next turn: `now`, or when the oldest turn's lease expires.

        While all are taken, those with an expired lease are revoked.
        """
        while len(host.leases) >= self._rules.per_host:
            oldest = next(iter(host.leases))
            if oldest.began + self._rules.lease_s > now:
                return oldest.began + self._rules.lease_s
            del host.leases[oldest]
            self._wishes[oldest.peer].pop(oldest.key, None)
        return now


class HostBusy(Exception):
    """The pause that a host asked for has more than `max_wait_s` left."""


WHYS: dict[str, Callable[[str], Exception]] = {
    "busy": HostBusy,
    "opt_out": lambda text: RowFault("opt_out", text),
    "not_kept": lambda text: VlpipeError(f"an opt-out could not be written into the root: {text}"),
}


class Turn:
    """A turn at a host: `async with` waits until it is granted, and returns it to the gate at the end.

    At the start it raises HostBusy, RowFault (opt_out) if the URL has opted out, or VlpipeError if the gate is lost; at the
    end VlpipeError if `opted_out` is set but cannot be stored.
    """

    __slots__ = ("_host", "_key", "_turns", "_url", "led_here", "opted_out", "struck", "wanted_s")

    def __init__(self, turns: Turns, host: str, url: str) -> None:
        self._turns, self._host, self._url, self._key = turns, host, url, 0
        self.struck = False  # the server asked to slow down (429 or 503)
        self.wanted_s = 0.0  # the pause it asked for (Retry-After); 0: none given
        self.opted_out: str | None = None  # evidence, if the URL opted out
        self.led_here = ""  # the listed URL, which is also recorded if `opted_out` is set

    async def __aenter__(self) -> Turn:
        self._key = self._turns.new_key()
        try:
            await self._turns.told(self._key, [self._key, self._host, _hash(self._url)])
        except asyncio.CancelledError:
            self._turns.tell(self._key)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.opted_out is not None:  # wait until it is stored
            hashes = [*{_hash(self._url): None, _hash(self.led_here): None}]
            item = [self._key, self.struck, self.wanted_s, self.opted_out, [one for one in hashes if one]]
            await self._turns.told(self._key, item)
        elif self.struck:
            self._turns.tell([self._key, True, self.wanted_s, None, []])
        else:
            self._turns.tell(self._key)


def _hash(url: str) -> str:
    """Returns `hash_of_url(url)` of a URL from `sendable`, faster for the usual ones; "" if `url` is empty.

    Without a port or a final dot of the host, the part after `://` is already what `hash_of_url` hashes.
    """
    _, _, rest = url.partition("://")
    netloc = rest.partition("/")[0]
    if ":" in netloc or netloc[-1:] == ".":
        return hash_of_url(url)
    return hashed("url", rest) if rest else ""


class Turns:
    """A worker's end of the connection to the gate, in the crawler's loop. send, close: methods of the connection."""

    send: Callable[[Any], None]
    close: Callable[[], None]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._out: list[Any] = []
        self._lost = False
        self._key = 0

    def turn(self, host: str, url: str = "") -> Turn:
        """Returns a Turn, to use as `async with turns.turn(host, url) as turn:`. url: as sent, from `sendable`."""
        return Turn(self, host, url)

    def new_key(self) -> int:
        """Returns an unused key."""
        self._key += 1
        return self._key

    def tell(self, item: Any) -> None:
        """Sends an item to the gate, together with others of the next GATHER_S; does not wait."""
        if not self._out:
            self._loop.call_later(GATHER_S, self._flush)
        self._out.append(item)

    async def told(self, key: int, item: Any) -> None:
        """Sends an item and waits for the answer to `key`.

        Raises the exception that WHYS has for the answer's `why`, VlpipeError if the connection is lost.
        """
        if self._lost:
            raise _hung_up()
        answer = self._asked[key] = self._loop.create_future()
        self.tell(item)
        try:
            await answer
        finally:
            del self._asked[key]

    def heard(self, message: Any) -> None:
        """Handles a message of the gate."""
        for item in message:
            key, why, text = (item, "", "") if isinstance(item, int) else item
            answer = self._asked.get(key)
            if answer is not None and not answer.done():
                answer.set_exception(WHYS[why](text)) if why else answer.set_result(None)

    def lost(self) -> None:
        """Called when the connection is lost: makes all waiting requests fail."""
        self._lost = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_hung_up())

    def _flush(self) -> None:
        self._out, out = [], self._out
        self.send(out)


def _hung_up() -> VlpipeError:
    return VlpipeError(
        "the connection to the run's driver is lost, and without it the workers cannot share a host's limits; "
        "run again to continue"
    )


@dataclass(eq=False)
class _LocalPeer:
    """The gate's view of a worker in the gate's own process."""

    turns: Turns

    def send(self, message: Any) -> None:
        self.turns.heard(message)


async def join(where: Address | None, rules: Politeness) -> Turns:
    """Returns Turns that are connected to the run's gate at `where`, or if None (outside a run), to a new local gate."""
    turns = Turns()
    if where is None:
        gate, peer = HostGate(rules), _LocalPeer(turns)
        turns.send, turns.close = (lambda message: gate.heard(peer, message)), (lambda: gate.left(peer))
    else:
        line = await connect(where, turns.heard, turns.lost)
        turns.send, turns.close = line.send, line.close
    return turns
