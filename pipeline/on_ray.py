"""Units on Ray: CPU stages as tasks, stages with weights as actor pools that load once, training through Ray Train.

Only shard references travel. What is running never asks for more than the cluster has; an idle pool lets go as soon as
something else needs its place (an idle actor holding one CPU made Ray Train's worker group time out after 60 s).
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from vlpipe.pipeline.errors import StepFailed, VlpipeError
from vlpipe.pipeline.gather import Gathered, GatherTask, run_gather
from vlpipe.pipeline.lock import RUN_VARIABLE
from vlpipe.pipeline.pandas_later import leave_pandas_alone
from vlpipe.pipeline.plan import Planned, is_gather
from vlpipe.pipeline.receipt import Receipt
from vlpipe.pipeline.runner import Done, Unit, WorkerDied
from vlpipe.pipeline.shared import Services
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.work import ShardTask, opening, run_shard, set_torch_threads

IN_FLIGHT = 2  # shards per actor: one works, the next one is already there


@functools.cache
def _settle() -> None:
    """Once in a worker, after its imports: no garbage collection looks through them again, and pandas is not among them."""
    leave_pandas_alone()
    gc.freeze()


def _run_shard(task: ShardTask) -> Receipt:
    _settle()
    return run_shard(task)


def _run_gather(task: GatherTask, cpus: float) -> Gathered:
    _settle()
    return run_gather(
        task, functools.partial(launch_on_ray, task.torch_threads, cpus, task.store.path(task.folder))
    )


class _ShardWorker:
    """Opens its stage with its first shard: what goes wrong there is that shard's error, not a dead actor's.

    A shard to be run row by row in a process of its own is run in place of the actor's work, not beside it.
    """

    def __init__(self) -> None:
        _settle()
        self._stack = ExitStack()
        self._work: Work | None = None

    def run(self, task: ShardTask) -> Receipt:
        if task.isolate:
            self._stack.close()
            self._work = None
        elif self._work is None:
            self._work = self._stack.enter_context(opening(task))
        return run_shard(task, self._work)


# The runner counts attempts and decides what a death means; Ray must not try again on its own.
_shard: Any = ray.remote(max_retries=0)(_run_shard)
_gather: Any = ray.remote(max_retries=0)(_run_gather)
_Worker: Any = ray.remote(max_restarts=0, max_task_retries=0)(_ShardWorker)


def launch_on_ray(
    torch_threads: int,
    cpus: float,
    folder: str,
    fn: Callable[[Any], None],
    config: Any,
    num_workers: int = 1,
    gpu: bool = False,
) -> None:
    """Run `fn(config)` in `num_workers` processes that form a torch process group."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"fn": fn, "config": config, "torch_threads": torch_threads},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=gpu, resources_per_worker={"CPU": cpus}
        ),
        run_config=RunConfig(storage_path=folder, name="work/ray"),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause_of(error) from error


def _cause_of(error: BaseException) -> BaseException:
    """The error a training worker raised, out of Ray Train's wrapping."""
    found = list((getattr(error, "worker_failures", None) or {}).values())
    for wrapping in ("health_check_failure", "base_error", "cause"):
        found = [getattr(failure, wrapping, None) or failure for failure in found]
    for failure in found:  # the others then fail for want of the dead one
        raised = isinstance(failure, ray.exceptions.RayTaskError)  # by the training itself
        if isinstance(failure, ray.exceptions.RayError) and not raised:
            return WorkerDied(f"a training worker died: {type(failure).__name__}", innocent=True)
    for failure in found:
        named = StepFailed(f"{type(failure).__name__}: {failure}")
        return failure if isinstance(failure, VlpipeError) else named
    return StepFailed(str(error))


def _train_loop(config: dict[str, Any]) -> None:
    set_torch_threads(config["torch_threads"])
    config["fn"](config["config"])


@dataclass
class _Pool:
    """The actors of one step and what each works on, oldest first."""

    step: Planned
    actors: dict[Any, list[Any]] = field(default_factory=dict)  # actor -> refs in flight

    @property
    def idle(self) -> bool:
        return not any(self.actors.values())


class RayExecutor:
    """Starts Ray on this machine, or joins the cluster at `address`."""

    def __init__(self, run: str, address: str | None = None) -> None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if address:
            _check_answers(address)
        runtime_env = {"env_vars": {RUN_VARIABLE: run}} if address else None
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime_env,
            )
        except ConnectionError as error:
            raise VlpipeError(f"no Ray cluster answers at {address}: {error}") from error
        total = ray.cluster_resources()
        self.total = {
            "CPU": float(total.get("CPU", 0)),
            "GPU": float(total.get("GPU", 0)),
            "memory": float(total.get("memory", 0)),
        }
        self.free = dict(self.total)
        self._units: dict[Any, tuple[Unit, Planned, Any]] = {}  # ref -> unit, step, actor
        self._pools: dict[str, _Pool] = {}
        self._tasks_to_come: set[str] = set()  # steps that are no pools and may still want a CPU
        # On a cluster, workers of other nodes must reach the driver.
        self._services = Services(ray.util.get_node_ip_address() if address else "127.0.0.1")

    def check(self, steps: Sequence[Planned]) -> list[str]:
        """Steps that ask for more than there is at all."""
        problems = []
        for one in steps:
            short = [f"{n:g} {k}" for k, n in self._need(one).items() if n > self.total[k]]
            if short:
                have = ", ".join(f"{n:g} {k}" for k, n in self.total.items() if k != "memory")
                problems.append(
                    f"step {one.name!r} needs {' and '.join(short)}, the cluster has {have} in all"
                )
        return problems

    def _need(self, one: Planned) -> dict[str, float]:
        res = one.keyed.step.resources
        workers = int(getattr(one.keyed.step.stage, "num_workers", 1)) if _launches(one) else 1
        return {
            "CPU": res.cpus * workers,
            "GPU": res.gpus * workers,
            "memory": res.memory_gb * 2**30 * workers,
        }

    def _fits(self, one: Planned, spare_cpus: float = 0.0) -> bool:
        need = self._need(one)
        return all(n <= self.free[k] - (spare_cpus if k == "CPU" else 0.0) + 1e-9 for k, n in need.items())

    def _account(self, one: Planned, sign: float) -> None:
        for kind, n in self._need(one).items():
            self.free[kind] += sign * n

    def expect(self, one: Planned) -> None:
        if not _pooled(one):
            self._tasks_to_come.add(one.name)

    def room(self, one: Planned) -> bool:
        if _pooled(one):
            pool = self._pools.get(one.name, _Pool(one))
            if any(len(refs) < IN_FLIGHT for refs in pool.actors.values()):
                return True
            if len(pool.actors) >= one.keyed.step.resources.actors:
                return False
            return self._fits_pool(one)
        if not self._fits(one):
            self._let_go_of_idle(one)
        return self._fits(one) or self._may_queue(one)

    def _may_queue(self, one: Planned) -> bool:
        """One task more than fits waits inside Ray, so that a worker never waits for the driver."""
        if is_gather(one):
            return False
        waiting = sum(
            1 for unit, step, actor in self._units.values() if actor is None and not is_gather(step)
        )
        fitting = self.total["CPU"] / max(one.keyed.step.resources.cpus, 0.01)
        holders = sum(len(p.actors) for p in self._pools.values())
        return 0 < waiting < fitting - holders + 1 and one.keyed.step.resources.gpus == 0

    def _fits_pool(self, one: Planned) -> bool:
        if not self._fits(one, self._left_to_tasks()):
            self._let_go_of_idle(one)
        return self._fits(one, self._left_to_tasks())

    def _left_to_tasks(self) -> float:
        """Pools leave one CPU to tasks while any may come, unless that leaves no pool at all."""
        return 1.0 if self._tasks_to_come and any(p.actors for p in self._pools.values()) else 0.0

    def _let_go_of_idle(self, wanting: Planned) -> None:
        for name, pool in list(self._pools.items()):
            if pool.idle and name != wanting.name:
                self._close_pool(name, pool)

    def _close_pool(self, name: str, pool: _Pool) -> None:
        for actor in pool.actors:
            ray.kill(actor)
            self._account(pool.step, +1)
        del self._pools[name]

    def submit(self, one: Planned, unit: Unit, task: ShardTask | GatherTask) -> None:
        if isinstance(task, ShardTask):
            task = replace(task, shared=self._services.address(one.name, task.stage.shared, task.store))
        res = one.keyed.step.resources
        options = {"num_cpus": res.cpus, "num_gpus": res.gpus, "name": one.name}
        if isinstance(task, GatherTask):
            options |= {"num_cpus": 0, "num_gpus": 0} if _launches(one) else {}
            ref, actor = _gather.options(**options).remote(task, res.cpus), None
            self._account(one, -1)
            self._tasks_to_come.discard(one.name)  # it is all of its step
        elif _pooled(one):
            actor = self._actor(one, options)
            ref = actor.run.remote(task)
            self._pools[one.name].actors[actor].append(ref)
        else:
            ref, actor = _shard.options(**options).remote(task), None
            self._account(one, -1)
        self._units[ref] = (unit, one, actor)

    def _actor(self, one: Planned, options: dict[str, Any]) -> Any:
        pool = self._pools.setdefault(one.name, _Pool(one))
        least = min(pool.actors, key=lambda a: len(pool.actors[a]), default=None)
        grow = len(pool.actors) < one.keyed.step.resources.actors and self._fits_pool(one)
        if least is not None and (not pool.actors[least] or not grow) and len(pool.actors[least]) < IN_FLIGHT:
            return least
        actor = _Worker.options(**{k: v for k, v in options.items() if k != "name"}).remote()
        pool.actors[actor] = []
        self._account(one, -1)
        return actor

    def wait(self, timeout_s: float) -> list[Done]:
        refs = list(self._units)
        first, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=True)
        ready = ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []
        return [done for ref in ready if ref in self._units for done in self._take(ref)]

    def _take(self, ref: Any) -> list[Done]:
        unit, one, actor = self._units.pop(ref)
        if actor is None:
            self._account(one, +1)
        elif ref in self._pools[one.name].actors.get(actor, []):
            self._pools[one.name].actors[actor].remove(ref)
        try:
            return [Done(unit, ray.get(ref))]
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            return [Done(unit, cause)]
        except ray.exceptions.RayError as error:
            innocent = isinstance(error, (ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError))
            died = [Done(unit, WorkerDied(f"the worker died: {type(error).__name__}", innocent=innocent))]
            return died + (self._bury(one, actor) if actor is not None else [])

    def _bury(self, one: Planned, actor: Any) -> list[Done]:
        """Take a dead actor out of its pool; what else it had in flight is innocent."""
        pool = self._pools[one.name]
        others = pool.actors.pop(actor, [])
        self._account(one, +1)
        gone = [self._units.pop(ref)[0] for ref in others if ref in self._units]
        return [Done(unit, WorkerDied("its worker died on another shard", innocent=True)) for unit in gone]

    def release(self, one: Planned) -> None:
        self._tasks_to_come.discard(one.name)
        self._services.drop(one.name)
        if one.name in self._pools:
            self._close_pool(one.name, self._pools[one.name])

    def drain(self, grace_s: float) -> list[Done]:
        """After an interrupt: what is running may finish within the grace."""
        deadline, done = time.monotonic() + grace_s, []
        while self._units and time.monotonic() < deadline:
            done += self.wait(0.2)
        return done

    def close(self) -> None:
        ray.shutdown()
        self._services.close()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise VlpipeError(f"--address: wanted HOST:PORT of a cluster's head, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise VlpipeError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def _pooled(one: Planned) -> bool:
    return bool(getattr(one.keyed.step.stage, "LOADS_WEIGHTS", False))


def _launches(one: Planned) -> bool:
    return bool(getattr(one.keyed.step.stage, "LAUNCHES", False))
