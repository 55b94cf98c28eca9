"""Decides what starts next and on which node: tracks node resources and applies precedence. Independent of Ray.

Steps with a unit ready are tried in order of urgency: gather steps, then those furthest downstream. The first one that
fits starts. One that will fit only when running tasks end reserves its nodes: less urgent steps cannot use what becomes
free there. A pool (the actors of one step) keeps its idle actors unless another pool or a gather step lacks exactly the
resources they hold. For a map task, idle actors are ended only if nothing runs and nothing else can start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Amounts = Mapping[str, float]

KINDS = ("CPU", "GPU", "memory")
NOT_COUNTED = ("object_store_memory",)
ZERO = "zero"  # tasks that request no CPU: each is still a process, so a node runs at most one per CPU
LEAST_CPUS = 0.1  # smaller requests count as this much: at most 10 processes per CPU
IN_FLIGHT = 2  # max shards per actor: one runs, the next one is queued
NEAR = 1e-6  # tolerance for sums of fractional resources


@dataclass(frozen=True)
class ResourceRequest:
    """Resources that one task or actor of a step needs. workers: number of processes that each need this amount, anywhere.
    least: with how many of these the step starts if the nodes that are there have no room for more, empty; 0: all.

    actors: max size of the step's actor pool, 0 if it has none; above: names of all steps it depends on, directly or not.
    """

    step: str
    need: Amounts
    is_gather: bool = False
    workers: int = 1
    actors: int = 0
    above: frozenset[str] = frozenset()
    least: int = 0

    @property
    def is_task(self) -> bool:
        return not (self.is_gather or self.actors)


def needed(
    cpus: float, gpus: float, memory_bytes: float, more: Amounts | None = None, *, is_task: bool
) -> dict[str, float]:
    """Returns the resources of one unit as the scheduler counts them. cpus and gpus may be fractions. more: name -> amount.

    is_task: a shard that runs as a Ray task, without an actor. If it requests no CPU, it counts as 1 unit of `ZERO`, of
    which a node has one per CPU.
    """
    zero = 1.0 if is_task and not cpus else 0.0
    return {
        "CPU": max(cpus, LEAST_CPUS) if cpus else 0.0,
        "GPU": gpus,
        "memory": memory_bytes,
        ZERO: zero,
        **(more or {}),
    }


@dataclass(eq=False)
class Allocation:
    """A running unit or an actor, with the nodes whose resources it holds. busy: shards an actor has in flight."""

    ask: ResourceRequest
    nodes: tuple[str, ...]
    busy: int = 0

    @property
    def node(self) -> str:
        return self.nodes[0]


@dataclass(frozen=True)
class Placement:
    """Decision to start one unit of a step. held: its allocation, or that of the actor that runs it.

    is_new: the allocation was made for this unit.
    """

    ask: ResourceRequest
    held: Allocation
    is_new: bool


@dataclass
class Turn:
    """State of one pass over the waiting steps. reserved: amounts per node; refused: some step did not fit and reserved
    nodes; draining: actors that get no more work."""

    reserved: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: bool = False
    draining: set[Allocation] = field(default_factory=set)


class Room:
    """The nodes of a cluster, and the allocations on them. Not thread-safe."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, float]] = {}
        self.tasks: dict[Allocation, None] = {}
        self.actors: list[Allocation] = []
        self._used: dict[str, dict[str, float]] = {}  # node -> amounts that tasks and actors hold
        self.careful: set[str] = set()  # pools in which an actor died: one shard in flight per actor
        self._expected: dict[str, ResourceRequest] = {}

    def join(self, node: str, total: Amounts) -> None:
        """Adds a node. total: its resources as Ray reports them, memory in bytes; empty for a node that gets no work."""
        cpus = float(total.get("CPU", 0))
        more = {
            kind: float(n)
            for kind, n in total.items()
            if kind not in NOT_COUNTED and not kind.startswith("node:")
        }
        self.nodes[node] = {**dict.fromkeys(KINDS, 0.0), **more, ZERO: cpus}

    def leave(self, node: str) -> None:
        """Removes a lost node."""
        self.nodes.pop(node, None)

    def expect(self, ask: ResourceRequest) -> None:
        """Registers a step of which units may be started from now on."""
        self._expected[ask.step] = ask

    def release(self, step: str) -> list[Allocation]:
        """Unregisters a step that has no more units. Returns its actors, whose allocations are released."""
        self._expected.pop(step, None)
        actors = self.pool(step)
        for actor in actors:
            self.end(actor)
        return actors

    def pool(self, step: str) -> list[Allocation]:
        """Returns the actors of a step."""
        return [a for a in self.actors if a.ask.step == step]

    def end(self, held: Allocation) -> None:
        """Releases the allocation of a finished task or a dead actor. Does nothing if it was released before."""
        if held in self.tasks:
            del self.tasks[held]
        elif held in self.actors:
            self.actors.remove(held)
        else:
            return
        for node in held.nodes:
            self._used[node] = _minus(self._used[node], held.ask.need)

    def _hold(self, held: Allocation) -> Allocation:
        if held.ask.actors:
            self.actors.append(held)
        else:
            self.tasks[held] = None
        for node in held.nodes:
            self._used[node] = _plus(self._used.get(node, {}), held.ask.need)
        return held

    @property
    def at_work(self) -> bool:
        """True if any task runs or any actor has a shard in flight."""
        return bool(self.tasks) or any(a.busy for a in self.actors)

    def free(self) -> dict[str, dict[str, float]]:
        """Returns the free resources of each node; CPUs are negative while a task is queued there."""
        return {n: _minus(total, self._used.get(n, {})) for n, total in self.nodes.items()}

    def holds(self, ask: ResourceRequest) -> bool:
        """Returns True if the empty cluster could run one unit of this step."""
        return self._spread(ask, {n: dict(total) for n, total in self.nodes.items()}) is not None

    def pick(self, wanting: Sequence[ResourceRequest]) -> tuple[Placement | None, list[Allocation]]:
        """Returns (the unit that starts now or None, actors to end for it). The allocations are already updated."""
        start, let_go = self._look(wanting)
        if start is None and not self.at_work:  # nothing will become free by itself
            start, more = self._look(wanting, stalled=True)
            let_go += more
        return start, let_go

    def _look(
        self, wanting: Sequence[ResourceRequest], *, stalled: bool = False
    ) -> tuple[Placement | None, list[Allocation]]:
        turn, has_work = Turn(), {ask.step for ask in wanting}
        for ask in wanting:
            start = self._pooled(ask, turn, stalled) if ask.actors else self._placed(ask, turn)
            if start is not None:
                return start, []
            let_go = self._reserve(ask, turn, has_work, stalled)
            if let_go:  # try again: what they held is free now, or reserved
                for actor in let_go:
                    self.end(actor)
                again, more = self._look(wanting, stalled=stalled)
                return again, let_go + more
        return None, []

    def _placed(self, ask: ResourceRequest, turn: Turn) -> Placement | None:
        """Returns the placement of a task or a gather step; None if it does not fit."""
        nodes = self._spread(ask, self._free(turn))
        if nodes is None and self._may_queue(ask, turn):
            nodes = self._spread(ask, self._with_one_more(ask, turn))
        if nodes is None:
            return None
        return Placement(ask, self._hold(Allocation(ask, nodes)), is_new=True)

    def _may_queue(self, ask: ResourceRequest, turn: Turn) -> bool:
        """Returns True if one task more than fits may be queued on a node, so that no worker waits for the driver.

        False while a more urgent step has reserved nodes, or a pool that will get work has no actor yet.
        """
        if not ask.is_task or turn.refused or not ask.need["CPU"] or ask.need["GPU"]:
            return False
        if any(free["CPU"] < -NEAR for free in self.free().values()):
            return False  # a task is already queued
        return all(self.pool(other.step) for other in self._expected.values() if other.actors)

    def _with_one_more(self, ask: ResourceRequest, turn: Turn) -> dict[str, dict[str, float]]:
        """Returns free resources as if one task on each node that runs one had ended."""
        free = self._free(turn)
        for node in {held.node for held in self.tasks if held.ask.is_task} & set(free):
            free[node]["CPU"] += ask.need["CPU"]
        return free

    def _pooled(self, ask: ResourceRequest, turn: Turn, stalled: bool) -> Placement | None:
        """Places a pool's shard on an idle actor, else a new one, else a busy one that may take one more; else None.

        stalled: nothing runs, so a new actor need not leave room for other steps.
        """
        deep = 1 if ask.step in self.careful else IN_FLIGHT
        mine = sorted(self.pool(ask.step), key=lambda a: a.busy)
        ready = [a for a in mine if a.busy < deep and a not in turn.draining]
        if ready and not ready[0].busy:
            return self._given(ready[0], is_new=False)
        if len(mine) < ask.actors:
            free = self._free(turn)
            for node in self._best(ask, free):
                if stalled or self._leaves_room(ask, node, first=not mine):
                    return self._given(self._hold(Allocation(ask, (node,))), is_new=True)
        return self._given(ready[0], is_new=False) if ready else None

    @staticmethod
    def _given(actor: Allocation, *, is_new: bool) -> Placement:
        actor.busy += 1
        return Placement(actor.ask, actor, is_new)

    def _leaves_room(self, pool: ResourceRequest, node: str, *, first: bool) -> bool:
        """Returns False if one more actor of the pool on the node leaves no room for another expected step that fits now.

        first: the pool has no actor yet. Steps downstream of the pool do not block it, as they get no work without it.
        """
        now = self._beside(self.actors)
        then = {**now, node: _minus(now[node], pool.need)}
        for task in self._expected.values():
            if task.actors or (first and pool.step in task.above):
                continue
            if self._fits_any(task, now) and not self._fits_any(task, then):
                return False
        return True

    def _reserve(
        self, ask: ResourceRequest, turn: Turn, has_work: set[str], stalled: bool
    ) -> list[Allocation]:
        """Reserves nodes for a step that does not fit, if it will fit later. Returns idle actors to end for it.

        has_work: names of the steps with a unit ready; stalled: nothing runs, so nothing becomes free by itself.
        """
        if ask.actors and len(self.pool(ask.step)) >= ask.actors:
            return []  # the pool has its full size: its shards wait for its own actors
        idle = self._may_go(ask, has_work, stalled)
        going = idle
        nodes = self._spread(ask, self._beside((a for a in self.actors if a not in idle), turn))
        if nodes is None and ask.is_gather:  # actors finish their shards in flight and get no new ones
            nodes, going = self._spread(ask, self._beside((), turn)), self.actors
        if nodes is None or (ask.actors and not stalled and not self._may_grow(ask, nodes[0], idle)):
            return []
        going = _fewest_actors(going, ask, nodes, self._free(turn))
        turn.refused = True
        turn.draining |= {a for a in going if a.busy}
        for node in nodes:
            turn.reserved[node] = _plus(turn.reserved.get(node, {}), ask.need)
        return [a for a in going if not a.busy]

    def _may_go(self, ask: ResourceRequest, has_work: set[str], stalled: bool) -> list[Allocation]:
        """Returns idle actors of other steps that may be ended for this one. Arguments as in `_reserve`."""
        idle = [a for a in self.actors if not a.busy and a.ask.step != ask.step]
        if stalled:
            return idle
        return [] if ask.is_task else [a for a in idle if a.ask.step not in has_work]

    def _may_grow(self, ask: ResourceRequest, node: str, idle: Iterable[Allocation]) -> bool:
        """Returns what `_leaves_room` would return if the idle actors had ended."""
        before = self.actors
        self.actors = [a for a in before if a not in set(idle)]
        try:
            return self._leaves_room(ask, node, first=not self.pool(ask.step))
        finally:
            self.actors = before

    def _spread(self, ask: ResourceRequest, free: dict[str, dict[str, float]]) -> tuple[str, ...] | None:
        """Returns a node for each worker, or None if they do not all fit. Subtracts what they need from `free`."""
        nodes = []
        for _ in range(self._num_workers(ask)):
            best = self._best(ask, free)
            if not best:
                return None
            nodes.append(best[0])
            free[best[0]] = _minus(free[best[0]], ask.need)
        return tuple(nodes)

    def _num_workers(self, ask: ResourceRequest) -> int:
        if not 0 < ask.least < ask.workers:
            return ask.workers
        empty, num = {n: dict(total) for n, total in self.nodes.items()}, 0
        while num < ask.workers and (best := self._best(ask, empty)):
            empty[best[0]] = _minus(empty[best[0]], ask.need)
            num += 1
        return max(num, ask.least)

    def _best(self, ask: ResourceRequest, free: Mapping[str, Amounts]) -> list[str]:
        """Returns nodes with enough resources, best first: GPU nodes last if no GPU is needed, then by most free CPUs."""
        able = [n for n, have in free.items() if _fits(ask.need, have)]
        return sorted(
            able, key=lambda n: (bool(self.nodes[n]["GPU"]) and not ask.need["GPU"], -free[n]["CPU"])
        )

    def _fits_any(self, ask: ResourceRequest, free: Mapping[str, Amounts]) -> bool:
        return any(_fits(ask.need, have) for have in free.values())

    def _free(self, turn: Turn) -> dict[str, dict[str, float]]:
        """Returns the resources of each node that are neither allocated nor reserved."""
        free = self.free()
        for node in set(turn.reserved) & set(free):
            free[node] = _minus(free[node], turn.reserved[node])
        return free

    def _beside(self, held: Iterable[Allocation], turn: Turn | None = None) -> dict[str, dict[str, float]]:
        """Returns the total resources of each node minus these allocations and what is reserved."""
        free = {n: dict(total) for n, total in self.nodes.items()}
        taken = [(node, one.ask.need) for one in held for node in one.nodes]
        for node, amounts in [*taken, *(turn.reserved.items() if turn else ())]:
            if node in free:
                free[node] = _minus(free[node], amounts)
        return free


def _fits(need: Amounts, have: Amounts) -> bool:
    return all(n <= have.get(kind, 0.0) + NEAR for kind, n in need.items())


def _plus(have: Amounts, more: Amounts) -> dict[str, float]:
    return {kind: have.get(kind, 0.0) + more.get(kind, 0.0) for kind in {*have, *more}}


def _minus(have: Amounts, less: Amounts) -> dict[str, float]:
    return {kind: have.get(kind, 0.0) - less.get(kind, 0.0) for kind in {*have, *less}}


def _fewest_actors(
    going: Iterable[Allocation], ask: ResourceRequest, nodes: Sequence[str], free: Mapping[str, Amounts]
) -> list[Allocation]:
    """Returns those of `going` to end so that the nodes have the resources for `ask`.

    On each node idle ones come first, and no more are taken once nothing is lacking. Actors that hold nothing of what is
    lacking are left out.
    """
    found: list[Allocation] = []
    for node in dict.fromkeys(nodes):
        lacks = {kind: n * nodes.count(node) - free[node].get(kind, 0.0) for kind, n in ask.need.items()}
        for actor in sorted((a for a in going if a.node == node), key=lambda a: a.busy):
            helps = {kind: n for kind, n in actor.ask.need.items() if n and lacks.get(kind, 0.0) > NEAR}
            if helps:
                found.append(actor)
                lacks = _minus(lacks, helps)
    return found
