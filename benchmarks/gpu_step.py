"""(a) The matrix rate, and a step of BLIP's pretraining: time, FLOPs, memory, host synchronisations.

As a program it measures the compiled step, in a process that can be stopped: `gpu_step.py FOLDER small|large RATE`.
"""

from __future__ import annotations

import json
import subprocess
import sys
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


def measure(bench: Bench) -> None:
    rate = matrix_rate(bench)
    bench.matrix_rate = rate
    for deterministic in (True, False):
        if bench.has_time(_name(bench, deterministic, False)):
            step(bench, rate, deterministic=deterministic, compiled=False)


def measure_compiled(bench: Bench) -> None:
    """The last section: compiling takes minutes on some machines, and may take what is left of the time."""
    rate, left = bench.matrix_rate or matrix_rate(bench), bench.left_s()
    size = "small" if bench.small else "large"
    command = [sys.executable, __file__, str(bench.folder), size, str(rate)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        bench.add(_name(bench, False, True), skipped=f"compiling had not ended after {left:.0f} s")
        return
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    row = json.loads(done.stdout.splitlines()[-1])
    bench.add(**row)


def _name(bench: Bench, deterministic: bool, compiled: bool) -> str:
    return f"step, batch {_batch_size(bench)}, deterministic {deterministic}, compile {compiled}"


def _batch_size(bench: Bench) -> int:
    return 8 if bench.small else 128


def matrix_rate(bench: Bench) -> float:
    """FLOP/s of a product of two square bf16 matrices of random values."""
    side = 256 if bench.small else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / median_s(bench, lambda: a @ b, warm=3, num=11)
    peak = None if bench.small else peak_flops(torch.cuda.get_device_name())
    share = {} if peak is None else {"of_peak": rate / peak}
    bench.add(f"bf16 matrix product, {side}", tflops=rate / 1e12, **share)
    return rate


def step(bench: Bench, rate: float, *, deterministic: bool, compiled: bool) -> None:
    what = _name(bench, deterministic, compiled)
    try:
        with reproducible() if deterministic else nullcontext():
            _step(bench, what, rate, deterministic, compiled)
    except VlpipeError as error:  # an operation without a deterministic kernel
        bench.add(what, error=str(error)[:300])


def _step(bench: Bench, what: str, rate: float, deterministic: bool, compiled: bool) -> None:
    size = _batch_size(bench)
    run = new_run(bench, recipe(bench, batch_size=size, deterministic=deterministic, compile=compiled))
    if compiled and bench.small:  # without code generation, which takes longer than the whole trial
        run.parallel = torch.compile(run.net, backend="eager")
    batch = batch_of(bench, size)
    meter = FlopMeter(run.net, run.dtype)
    meter.add([batch], bench.device)
    if not bench.small:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_s(bench, lambda: train_step(run, [batch]), warm=4, num=3 if bench.small else 10)
    flops = meter.total / seconds
    memory = {} if bench.small else {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    values = {"ms": 1e3 * seconds, "samples_per_s": size / seconds, "tflops": flops / 1e12}
    gflop = meter.total / size / 1e9
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
        if "called a synchronizing" in str(message):
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


def main() -> None:
    folder, size, rate = sys.argv[1:]
    bench = Bench(size == "small", Path(folder))
    step(bench, float(rate), deterministic=False, compiled=True)
    print(json.dumps(bench.found[""][-1]))


if __name__ == "__main__":
    main()
