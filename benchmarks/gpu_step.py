"""(a) The matrix rate, and a step of BLIP's pretraining: time, FLOPs, memory, host synchronisations."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gpu_bare import REPO
from gpu_common import Bench, batch_of, median_s, new_run, recipe

from vlpipe.models.flops import FlopMeter, peak_flops
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.runtime import reproducible

WAYS = ((True, False), (False, False), (False, True))  # (deterministic, compile)


def measure(bench: Bench) -> None:
    rate = matrix_rate(bench)
    batch_size = 8 if bench.small else 128
    for deterministic, compiled in WAYS:
        what = f"step, batch {batch_size}, deterministic {deterministic}, compile {compiled}"
        if bench.has_time(what):
            step(bench, what, batch_size, rate, deterministic=deterministic, compiled=compiled)


def matrix_rate(bench: Bench) -> float:
    """FLOP/s of a product of two square bf16 matrices of random values."""
    side = 256 if bench.small else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / median_s(bench, lambda: a @ b, warm=3, num=11)
    peak = None if bench.small else peak_flops(torch.cuda.get_device_name())
    share = {} if peak is None else {"of_peak": rate / peak}
    bench.add(f"bf16 matrix product, {side}", tflops=rate / 1e12, **share)
    return rate


def step(
    bench: Bench, what: str, batch_size: int, rate: float, *, deterministic: bool, compiled: bool
) -> None:
    with reproducible() if deterministic else nullcontext():
        run = new_run(
            bench, recipe(bench, batch_size=batch_size, deterministic=deterministic, compile=compiled)
        )
        if compiled and bench.small:  # without code generation, which takes longer than the whole trial
            run.parallel = torch.compile(run.net, backend="eager")
        batch = batch_of(bench, batch_size)
        meter = FlopMeter(run.net)
        meter.add([batch], bench.device)
        if not bench.small:
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = median_s(bench, lambda: train_step(run, [batch]), warm=4, num=3 if bench.small else 10)
        except VlpipeError as error:  # an operation without a deterministic kernel
            bench.add(what, error=str(error)[:300])
            return
        flops = meter.total / seconds
        memory = {} if bench.small else {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
        values = {"ms": 1e3 * seconds, "samples_per_s": batch_size / seconds, "tflops": flops / 1e12}
        gflop = meter.total / batch_size / 1e9
        bench.add(what, **values, of_matrix_rate=flops / rate, gflop_per_sample=gflop, **memory)
        if not compiled and not deterministic:
            host_syncs(bench, run, batch)


def host_syncs(bench: Bench, run: Run, batch: Any) -> None:
    """Counts the calls of one step in which the host waits for the device, by the project's line that made them."""
    if bench.small:
        bench.add("host synchronisations of a step", skipped="there is no device to wait for")
        return
    lines: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            lines[_own_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train_step(run, [batch])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.add("host synchronisations of a step", num=sum(lines.values()), lines=dict(lines.most_common()))


def _own_line() -> str:
    """Returns the innermost line of the project on the stack, as file:line."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(REPO) and path.parent.name != "benchmarks" and ".venv" not in path.parts:
            return f"{path.relative_to(REPO)}:{frame.lineno}"
    return "elsewhere"
