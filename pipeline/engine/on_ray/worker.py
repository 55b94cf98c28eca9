"""Code that runs in Ray workers: a shard, a gather step, an actor that keeps its stage open, training with Ray Train."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray

from vlpipe.pipeline.engine.executor import WorkerDied
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker.device import granted
from vlpipe.pipeline.engine.worker.gather import GatherResult, GatherTask, launch_here, run_gather
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, opening, run_shard
from vlpipe.pipeline.engine.worker.open_stage import set_torch_threads
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
from vlpipe.pipeline.errors import StepFailed, VlpipeError, one_line
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.steps.step import Resources

START_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # of all workers of a training
# what gloo and NCCL say in a worker when another one is gone, which Ray may notice later
PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "pair closure",
    "ncclRemoteError",
)


class PeerLost(RuntimeError):
    """An exchange of training workers failed because one of them is gone."""


@functools.cache
def _prepare_process() -> None:
    """Runs once per worker, after its imports: delays that of pandas; takes existing objects out of garbage collection."""
    leave_pandas_alone()
    gc.freeze()


def _run_shard(task: ShardTask, resources: Resources) -> Receipt:
    _prepare_process()
    with granted(resources.gpus):
        return run_shard(task)


def _run_gather(task: GatherTask, resources: Resources, held: int = 1) -> GatherResult:
    """held: for how many workers there is room."""
    _prepare_process()
    with granted(resources.gpus):
        return run_gather(task, functools.partial(_launch, task, resources, held))


def _launch(
    task: GatherTask,
    resources: Resources,
    held: int,
    fn: Callable[[Any], None],
    config: Any,
    num_workers: int = 1,
    gpu: bool = False,
) -> None:
    """Runs `fn(config)` here if the step has one worker, as this task has its resources then; else with Ray Train, in as
    many workers as there is room for.
    """
    most = task.stage.processes or task.stage.num_workers
    if num_workers > most:
        raise VlpipeError(
            f"launch: {num_workers} workers, but the stage's num_workers, for which resources are held, is {most}"
        )
    num_workers = min(num_workers, held)
    if most == 1:
        launch_here(fn, config)
    else:
        launch_on_ray(
            task.torch_threads, resources, task.store.path(task.folder), fn, config, num_workers, gpu
        )


class _ShardWorker:
    """Actor that keeps its stage open between shards. It opens the stage with the first shard, so that an error there fails
    that shard and does not kill the actor.

    For a shard with `isolate`, which runs in its own process, the actor closes its stage first.
    """

    def __init__(self, resources: Resources) -> None:
        _prepare_process()
        self._resources = resources
        self._stack = ExitStack()
        self._work: Work | None = None

    def run(self, task: ShardTask) -> Receipt:
        with granted(self._resources.gpus):
            if task.isolate:
                self._stack.close()
                self._work = None
            elif self._work is None:
                self._work = self._stack.enter_context(opening(task))
            return run_shard(task, self._work)


# The runner counts attempts and decides what a death means; Ray must not retry on its own.
remote_shard: Any = ray.remote(max_retries=0)(_run_shard)
remote_gather: Any = ray.remote(max_retries=0)(_run_gather)
remote_training: Any = ray.remote(max_retries=0, max_calls=1)(_run_gather)  # its process ends and frees a GPU
ShardWorker: Any = ray.remote(max_restarts=0, max_task_retries=0)(_ShardWorker)


def launch_on_ray(
    torch_threads: int,
    resources: Resources,
    folder: str,
    fn: Callable[[Any], None],
    config: Any,
    num_workers: int = 1,
    gpu: bool = False,
) -> None:
    """Runs `fn(config)` in `num_workers` processes that form a torch process group, each with the step's resources.

    folder: where Ray Train stores its files, below `work/ray`. Raises WorkerDied if a process died, StepFailed or the
    VlpipeError that `fn` raised if it failed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    os.environ.setdefault(START_S, "120")
    each = {"CPU": resources.cpus, **resources.more}
    if gpu:
        each["GPU"] = resources.gpus
    if resources.memory_gb:
        each["memory"] = resources.memory_gb * 2**30
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={
            "fn": fn,
            "config": config,
            "torch_threads": torch_threads,
            "resources": resources if gpu else replace(resources, gpus=0, accelerator=None),
        },
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=gpu, resources_per_worker=each),
        # a node can be lost before anyone notices: workers that do not come are asked for anew, by the engine
        run_config=RunConfig(
            storage_path=folder, name="work/ray", failure_config=FailureConfig(controller_failure_limit=0)
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause_of(error) from error


def _cause_of(error: BaseException) -> BaseException:
    """Returns the error that a training worker raised, unwrapped from Ray Train's errors."""
    if "Startup" in type(getattr(error, "controller_failure", None)).__name__:
        return WorkerDied("not all training workers came", innocent=True)
    found = list((getattr(error, "worker_failures", None) or {}).values())
    for wrapping in ("health_check_failure", "base_error", "cause"):
        found = [getattr(failure, wrapping, None) or failure for failure in found]
    for failure in found:  # a dead worker first: the others fail because of it
        raised = isinstance(failure, ray.exceptions.RayTaskError)  # raised by the training code
        if isinstance(failure, ray.exceptions.RayError) and not raised:
            return WorkerDied(f"a training worker died: {type(failure).__name__}", innocent=True)
    for failure in found:
        if isinstance(failure, PeerLost):
            return WorkerDied(f"a training worker lost another: {failure}", innocent=True)
    for failure in found:
        named = StepFailed(f"{type(failure).__name__}: {failure}")
        return failure if isinstance(failure, VlpipeError) else named
    return StepFailed(str(error))


def _train_loop(config: dict[str, Any]) -> None:
    set_torch_threads(config["torch_threads"])
    with granted(config["resources"].gpus):
        try:
            config["fn"](config["config"])
        except RuntimeError as error:
            if any(text in str(error) for text in PEER_LOST):
                raise PeerLost(one_line(str(error), 200)) from error
            raise
