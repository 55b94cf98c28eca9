"""`tune`: measures a step's model with growing batches, to find the fastest batch size and the largest that fits."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.engine.planned import PlannedStep, resolve_stage
from vlpipe.pipeline.engine.worker.device import device_of_step, granted
from vlpipe.pipeline.engine.worker.guard import is_out_of_memory
from vlpipe.pipeline.engine.worker.local_files import here
from vlpipe.pipeline.engine.worker.open_stage import set_torch_threads
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

SMALLEST = 16
SECONDS = 2.0  # min time over which a size is measured, after one batch that is not
TOO_LONG_S = 60.0  # larger sizes are not tried after a batch that takes longer


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured with one batch size. per_s: samples per second; bytes: peak memory; why: why there is no figure."""

    batch_size: int
    per_s: float = 0.0
    bytes: int = 0
    why: str = ""


def tune(one: PlannedStep, store: Store, most: int) -> Iterator[Trial]:
    """Yields a trial per batch size 16, 32, 64, ... up to `most`, until one does not fit or a batch takes TOO_LONG_S.

    It computes on made-up input, on the device that the step asks for, and writes nothing. Raises VlpipeError if the
    stage has nothing to tune, or if a step whose artifacts it reads is not done.
    """
    missing = [maker.name for maker in one.artifact_steps if not maker.is_done]
    if missing:
        raise VlpipeError(
            f"{one.name} reads what step {missing[0]!r} makes, which is not done: run the workflow up to it first"
        )
    step = one.keyed.step
    with granted(step.resources.gpus):
        if step.stage.TORCH:
            set_torch_threads(step.torch_threads)
        trials = here(resolve_stage(one, store)).trials()
        if trials is None:
            raise VlpipeError(
                f"{one.name}: a {type(step.stage).__name__} with these parameters does not say how to measure a batch "
                "(its `trials` returns None), so it cannot be tuned"
            )
        with trials as compute:
            yield from _measured(compute, most)


def _measured(compute: Callable[[int], None], most: int) -> Iterator[Trial]:
    size = SMALLEST
    while size <= most:
        try:
            seconds, trial = _measure(compute, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            yield Trial(size, why="out of memory")
            return
        yield trial
        if seconds > TOO_LONG_S:
            yield Trial(2 * size, why=f"not tried: a batch of {size} takes {seconds:.0f} s")
            return
        size *= 2


def _measure(compute: Callable[[int], None], size: int) -> tuple[float, Trial]:
    """Returns (seconds of a batch, trial). The first one warms up, and may compile: it does not count."""
    torch = _torch_on_gpu()
    if torch:
        torch.cuda.reset_peak_memory_stats()
    compute(size)
    began, num = time.monotonic(), 0
    while not num or time.monotonic() - began < SECONDS:
        compute(size)
        num += 1
    seconds = (time.monotonic() - began) / num
    return seconds, Trial(size, size / seconds, torch.cuda.max_memory_allocated() if torch else _peak_bytes())


def _torch_on_gpu() -> Any:
    if device_of_step() != "cuda":
        return None
    import torch

    return torch


def _peak_bytes() -> int:
    """Returns the most memory that this process has had so far; sizes grow, so it is that of the last one."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def advice(name: str, trials: Sequence[Trial]) -> str:
    """Returns which sizes are the fastest and the largest, and the option that sets the fastest."""
    fit = [trial for trial in trials if not trial.why]
    if not fit:
        return f"{name}: not even {trials[0].batch_size} samples fit"
    best = max(fit, key=lambda trial: trial.per_s)
    fastest = next(trial for trial in fit if trial.per_s >= 0.97 * best.per_s)
    text = f"fastest (within 3 %): --set {name}.batch_size={fastest.batch_size}; largest that fits"
    end = "" if trials[-1].why == "out of memory" else " of those tried"
    return f"{text}{end}: {fit[-1].batch_size}. batch_size is in the step's key: with another one its rows are made again"
