"""(e) Trainings in processes of their own: two run through, one is killed after a checkpoint and runs again.

As a program it is such a training: `python benchmarks/gpu_resume.py FOLDER small|large NAME`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from gpu_common import AUGMENT, Bench, pictures, recipe, stored

STEPS, EVERY = 16, 8  # steps of a run, and of a checkpoint


def measure(bench: Bench) -> None:
    began = time.perf_counter()
    both = [(name, _start(bench, name)) for name in ("first", "second")]  # at the same time
    first, second = (_digest(bench, name, process) for name, process in both)
    seconds = time.perf_counter() - began
    bench.add("two runs", same_bytes=first == second, seconds=seconds, digest=first[:12])
    at = killed(bench, "killed")
    resumed = _digest(bench, "killed", _start(bench, "killed"))
    bench.add("killed and run again", killed_at=at, same_bytes=resumed == first, digest=resumed[:12])


def _start(bench: Bench, name: str) -> subprocess.Popen[str]:
    size = "small" if bench.small else "large"
    return subprocess.Popen(
        [sys.executable, __file__, str(bench.folder), size, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _digest(bench: Bench, name: str, process: subprocess.Popen[str]) -> str:
    """Returns the digest of the weights of a training, when it has ended."""
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"the training {name} failed: {output[-300:]}")
    return hashlib.sha256((bench.folder / name / "result" / "model.safetensors").read_bytes()).hexdigest()


def killed(bench: Bench, name: str) -> str:
    """Kills a training (SIGKILL) as soon as it has a checkpoint, and returns the checkpoint's name."""
    process = _start(bench, name)
    try:
        while process.poll() is None:
            found = [p.name for p in (bench.folder / name / "checkpoints").glob("*.pt")]
            if found:
                return found[0]
            time.sleep(0.005)
        raise RuntimeError(f"the training ended before it was killed: {process.communicate()[0][-300:]}")
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    from vlpipe.stages.train.fit import fit

    folder, size, name = sys.argv[1:]
    bench = Bench(size == "small", Path(folder))
    data = stored(
        bench, pictures(64 if bench.small else 500, 8), 128 if bench.small else 1024, f"{name}-data"
    )
    layers = {} if bench.small else {"vision_layers": 4, "text_layers": 4}
    more = {"warmup_steps": 2, "checkpoint_every": EVERY, "log_every": EVERY, "loader_threads": 4}
    of = recipe(
        bench,
        model=bench.model(**layers),
        batch_size=8 if bench.small else 64,
        steps=STEPS,
        augment=AUGMENT,
        **more,
    )
    work = bench.folder / name
    work.mkdir(exist_ok=True)
    fit({"recipe": of, "inputs": (data,), "work": str(work)})


if __name__ == "__main__":
    main()
