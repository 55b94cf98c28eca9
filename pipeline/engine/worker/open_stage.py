"""Opens a stage's function in this process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vlpipe.pipeline.engine.worker.local_files import here
from vlpipe.pipeline.service import Address, at
from vlpipe.pipeline.stage import MapStage, Stage, Work

NAMES = ("scipy_openblas_set_num_threads", "openblas_set_num_threads")
SET_NUM_THREADS = tuple(
    name + ending for name in NAMES for ending in ("64_", "")
)  # of OpenBLAS, in its builds


@contextmanager
def opened(stage: MapStage, torch_threads: int, shared: Address | None = None) -> Iterator[Work]:
    """Yields the stage's function; sets the number of threads of torch, if the stage uses it, and of numpy first."""
    set_threads(stage, torch_threads)
    with ExitStack() as stack:
        with at(shared):
            work = stack.enter_context(here(stage).open())
        yield work


def set_library_modes() -> None:
    """Sets how MKL and OpenMP compute and wait; values that the environment has already are kept.

    MKL_CBWR: MKL's reproducible mode, without which a row's result depends on its position in a batch. MKL reads it at the
    first matrix product of the process. The command line calls this before planning, which may compute one; otherwise
    `--local` and Ray would give other last bits.
    GOMP_SPINCOUNT: how long a thread of torch spins for the others before it sleeps. With the library's own value a small
    model with 2 threads slows down tenfold as soon as another process wants a core (`benchmarks/thread_wait.py`). Results
    do not depend on it. It is read when torch is imported.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def set_threads(stage: Stage, torch_threads: int) -> None:
    """Sets the number of threads that the stage's matrix products have, whatever this machine and process would choose."""
    if stage.TORCH:
        set_torch_threads(torch_threads)
    else:
        set_blas_threads(1)


def set_torch_threads(num: int) -> None:
    """Sets torch's and numpy's number of threads, and the modes of torch's libraries if this process has not imported them
    yet."""
    set_library_modes()
    import torch

    torch.set_num_threads(num)
    set_blas_threads(num)


def set_blas_threads(num: int) -> None:
    """Sets the number of threads of numpy's matrix products, if they are OpenBLAS's, as in numpy's wheels for Linux.

    The last bits of a product depend on it; without this it is the number of cores, or OMP_NUM_THREADS, which Ray sets.
    """
    for set_num_threads in _openblas():
        set_num_threads(num)


@cache
def _openblas() -> tuple[Callable[[int], Any], ...]:
    import numpy  # noqa: F401  # loads the library

    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return ()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "openblas" in line and "faiss" not in line}
    libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    calls = (getattr(library, name, None) for library in libraries for name in SET_NUM_THREADS)
    return tuple(call for call in calls if call is not None)
