"""Runs units on Ray: CPU stages as tasks, stages with weights as actor pools that load once, training with Ray Train.

Only shard references are sent. `scheduler.py` decides what starts and on which node; this file starts it and collects the
results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from vlpipe.pipeline.engine.executor import Unit, UnitResult, WorkerDied
from vlpipe.pipeline.engine.locking.lock import RUN_VARIABLE
from vlpipe.pipeline.engine.on_ray.connection import Cluster, amount_text, node_resources
from vlpipe.pipeline.engine.on_ray.scheduler import (
    KINDS,
    ZERO,
    Allocation,
    Placement,
    ResourceRequest,
    Room,
    needed,
)
from vlpipe.pipeline.engine.on_ray.shipping import Shipping
from vlpipe.pipeline.engine.on_ray.worker import ShardWorker, remote_gather, remote_shard, remote_training
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather, launches
from vlpipe.pipeline.engine.worker.gather import GatherTask
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.stage import GatherStage, MapStage
from vlpipe.pipeline.storage.store import Store

LOOK_S = 5.0  # seconds between two updates of the list of nodes
PATIENCE_S = 60.0  # while nothing can run: max seconds to wait for a lost node to return
GROWING_S = 900.0  # the same for nodes requested from an autoscaler
DYING_S = 10.0  # max seconds to wait until all calls of a dead actor have failed


@dataclass
class _Running:
    unit: Unit
    one: PlannedStep
    held: Allocation


class RayExecutor:
    """Starts Ray on this machine, or joins the cluster at `address` (HOST:PORT, [IPv6]:PORT, auto, ray://HOST:PORT)."""

    def __init__(
        self, run: str, address: str | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._say = say
        self._cluster = Cluster({RUN_VARIABLE: run}, address)
        self._cluster.connect()
        self._shipping: Shipping | None = None
        self._room = Room()
        self._actors: dict[Allocation, Any] = {}
        self._running: dict[Any, _Running] = {}  # Ray ref -> unit, oldest first
        self._asks: dict[str, ResourceRequest] = {}
        self._start: Placement | None = None
        self._looked_s = self._idle_since = 0.0
        self._services = Services(self._cluster.driver_ip())
        self._look_at_nodes()

    def check(self, steps: Sequence[PlannedStep], store: Store) -> list[str]:
        """Returns errors: steps that no node has the resources for, nodes that do not see the root or an input file.

        Copies code that a node lacks.
        """
        problems = self.misfits(steps)
        if problems or not self._cluster.address:
            return problems
        self._shipping = Shipping(self._cluster, steps, store)
        problems = self._shipping.prepare()
        self._look_at_nodes()
        return problems

    def misfits(self, steps: Sequence[PlannedStep]) -> list[str]:
        """Returns errors: steps that no node has the resources for."""
        return [text for one in steps for text in self._misfit(one)]

    def _misfit(self, one: PlannedStep) -> list[str]:
        ask = self._ask(one)
        if self._room.holds(ask) or self._cluster.may_grow_to(ask.need):
            return []
        return [
            f"step {one.name!r} needs {_text(ask)}, and {self._cluster.nodes_text(list(self._room.nodes.values()))}"
        ]

    def _ask(self, one: PlannedStep) -> ResourceRequest:
        if one.name not in self._asks:
            stage, res = one.keyed.step.stage, one.keyed.step.resources
            gathers, pooled = is_gather(one), isinstance(stage, MapStage) and stage.LOADS_WEIGHTS
            is_task, num_bytes = not (gathers or pooled), res.memory_gb * 2**30
            trainer = stage if isinstance(stage, GatherStage) and launches(one) else None
            self._asks[one.name] = ResourceRequest(
                step=one.name,
                need=needed(res.cpus, res.gpus, num_bytes, res.more, is_task=is_task),
                is_gather=gathers,
                workers=(trainer.processes or trainer.num_workers) if trainer else 1,
                least=(trainer.least_processes or 0) if trainer else 0,
                actors=res.actors if pooled else 0,
                above=_all_above(one),
            )
        return self._asks[one.name]

    def expect(self, one: PlannedStep) -> None:
        self._room.expect(self._ask(one))

    def pick(self, wanting: Sequence[PlannedStep]) -> PlannedStep | None:
        if not wanting:
            return None
        self._start, let_go = self._room.pick([self._ask(one) for one in wanting])
        for held in let_go:
            ray.kill(self._actors.pop(held))
        if self._start is None:
            self._cluster.ask_for(
                [self._ask(one).need for one in wanting if not self._room.holds(self._ask(one))]
            )
            return None
        self._idle_since = 0.0
        return next(one for one in wanting if one.name == self._start.ask.step)

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None:
        assert self._start is not None
        held, res = self._start.held, one.keyed.step.resources
        if isinstance(task, GatherTask):
            remote = remote_training if launches(one) else remote_gather
            ref = remote.options(**self._options(one, held)).remote(task, res, len(held.nodes))
        else:
            task = replace(task, shared=self._services.address(one.name, task.stage.service, task.store))
            if not self._start.ask.actors:
                ref = remote_shard.options(**self._options(one, held)).remote(task, res)
            else:
                if self._start.is_new:
                    self._actors[held] = ShardWorker.options(**self._options(one, held)).remote(res)
                ref = self._actors[held].run.remote(task)
        self._running[ref] = _Running(unit, one, held)

    def _options(self, one: PlannedStep, held: Allocation) -> dict[str, Any]:
        """Returns Ray's options for a unit. Workers of Ray Train request their own resources; their launcher needs none."""
        res = one.keyed.step.resources
        if launches(one) and held.ask.workers > 1:
            options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0}
        else:
            options = {"num_cpus": res.cpus, "num_gpus": res.gpus, "resources": res.more}
            if res.memory_gb:
                options["memory"] = int(res.memory_gb * 2**30)
        if not held.ask.actors:
            options["name"] = one.name
        if len(self._room.nodes) > 1:
            options["scheduling_strategy"] = self._cluster.on_node(held.node)
        return options

    def wait(self, timeout_s: float) -> list[UnitResult]:
        self._look_at_nodes(LOOK_S)
        if not self._running:
            time.sleep(timeout_s)
            return []
        refs = list(self._running)
        first, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=True)
        ready = ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []
        return [done for ref in ready if ref in self._running for done in self._take(ref)]

    def _take(self, ref: Any) -> list[UnitResult]:
        result, held = _result(ref), self._running[ref].held
        if isinstance(result, WorkerDied):
            lost = [self._is_lost(node) for node in held.nodes]  # each is taken out
            if any(lost):
                result = WorkerDied(f"{result}, of a node that was lost", innocent=True)
            if held.ask.actors:
                return self._handle_dead_actor(held)
        return [self._ended(ref, result)]

    def _is_lost(self, node: str) -> bool:
        """Returns True if the cluster has lost the node. It then gets no more work, at once: a unit tried again there
        would fail again."""
        if node in node_resources():
            return False
        self._leave(node)
        return True

    def _leave(self, node: str) -> None:
        """Removes a lost node and its idle actors. Calls of the others fail by themselves."""
        self._room.leave(node)
        for held in [one for one in self._room.actors if one.node == node and not one.busy]:
            self._room.end(held)
            self._actors.pop(held, None)

    def _ended(self, ref: Any, result: Any) -> UnitResult:
        running = self._running.pop(ref)
        if running.held.ask.actors:
            running.held.busy -= 1
        else:
            self._room.end(running.held)
        return UnitResult(running.unit, result)

    def _handle_dead_actor(self, held: Allocation) -> list[UnitResult]:
        """Returns results for all shards of a dead actor. It ran the oldest unfinished one; the others are innocent.

        From now on, each actor of this pool has one shard in flight, so that the next death affects no other shard.
        """
        refs = [ref for ref, running in self._running.items() if running.held is held]
        ray.wait(refs, num_returns=len(refs), timeout=DYING_S)
        done: list[UnitResult] = []
        is_lost = self._is_lost(held.node)
        for ref in refs:
            result = _result(ref)
            if isinstance(result, WorkerDied) and (
                is_lost or any(isinstance(d.result, WorkerDied) for d in done)
            ):
                why = "its node was lost" if is_lost else "its worker died on another shard"
                result = WorkerDied(why, innocent=True)
            done.append(self._ended(ref, result))
        self._room.end(held)
        if not is_lost:
            self._room.careful.add(held.ask.step)
        self._actors.pop(held, None)
        return done

    def stuck(self, wanting: Sequence[PlannedStep]) -> str:
        """Returns an empty text for a while, as lost nodes may return and requested nodes may join; then an error text."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < (GROWING_S if self._cluster.grows else PATIENCE_S):
            return ""
        texts = [f"{one.name!r} needs {_text(self._ask(one))}" for one in wanting]
        return (
            f"no step can start, but these are not done: {', '.join(texts)}; "
            f"{self._cluster.nodes_text(list(self._room.nodes.values()))}"
        )

    def release(self, one: PlannedStep) -> None:
        self._services.drop(one.name)
        for held in self._room.release(one.name):
            if held in self._actors:
                ray.kill(self._actors.pop(held))

    def drain(self, grace_s: float) -> list[UnitResult]:
        deadline, done = time.monotonic() + grace_s, []
        while self._running and time.monotonic() < deadline:
            done += self.wait(0.2)
        return done

    def close(self) -> None:
        if self._shipping:
            self._shipping.close()
        self._cluster.disconnect()
        self._services.close()

    def _look_at_nodes(self, after_s: float = 0.0) -> None:
        """Updates the known nodes. A new node gets work once it has the run's code and files; a lost node gets none."""
        if after_s and (not self._cluster.address or time.monotonic() - self._looked_s < after_s):
            return
        self._looked_s = time.monotonic()
        there = node_resources()
        for node in set(self._room.nodes) - set(there):
            self._leave(node)
        for node in set(there) - set(self._room.nodes):
            problem = self._shipping.problem_of(node) if self._shipping else ""
            if problem is None:
                continue  # it has not answered yet
            if problem:
                self._say(f"node {self._cluster.name_of(node)} gets no work: {problem}")
                there[node] = {}
            self._room.join(node, there[node])


def _result(ref: Any) -> Any:
    """Returns what a Ray call returned, or the error it ended with."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, BaseException) else error
    except ray.exceptions.RayError as error:
        return died(error)


def died(error: BaseException) -> WorkerDied:
    """Returns WorkerDied for a Ray error. Innocent only if the node was lost: a task itself may have run out of memory."""
    lost = ray.exceptions
    node_lost = (lost.NodeDiedError, lost.TaskUnschedulableError, lost.ActorUnschedulableError)
    return WorkerDied(f"the worker died: {type(error).__name__}", innocent=isinstance(error, node_lost))


def _all_above(one: PlannedStep) -> frozenset[str]:
    found: set[str] = set()
    for above in (*one.above, *one.artifact_steps):
        found |= {above.name} | _all_above(above)
    return frozenset(found)


def _text(ask: ResourceRequest) -> str:
    """Returns a request as `4 CPU and 1 GPU`, or `8 x (4 CPU and 1 GPU)`."""
    amounts = [
        (ask.need["CPU"], "CPU"),
        (ask.need["GPU"], "GPU"),
        (ask.need["memory"] / 2**30, "GB of memory"),
    ]
    amounts += [(n, kind) for kind, n in ask.need.items() if kind not in (*KINDS, ZERO)]
    text = " and ".join(amount_text(n, kind) for n, kind in amounts if n) or "a task slot (one per CPU)"
    return f"{ask.workers} x ({text})" if ask.workers > 1 else text
