"""Opens a stage's function in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vlpipe.pipeline.engine.worker.local_files import here
from vlpipe.pipeline.service import Address, at
from vlpipe.pipeline.stage import MapStage, Work


@contextmanager
def opened(stage: MapStage, torch_threads: int, shared: Address | None = None) -> Iterator[Work]:
    """Yields the stage's function; sets torch's number of threads first if the stage uses torch."""
    if stage.TORCH:
        set_torch_threads(torch_threads)
    with ExitStack() as stack:
        with at(shared):
            work = stack.enter_context(here(stage).open())
        yield work


def set_mkl_mode() -> None:
    """Sets MKL's reproducible mode, without which a row's result depends on its position in a batch.

    The mode is the variable MKL_CBWR, which MKL reads at the first matrix product of the process. The command line calls
    this before planning, which may compute one; otherwise `--local` and Ray would give other last bits.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def set_torch_threads(num: int) -> None:
    """Sets torch's number of threads, and MKL's reproducible mode if the process has not computed yet."""
    set_mkl_mode()
    import torch

    torch.set_num_threads(num)
