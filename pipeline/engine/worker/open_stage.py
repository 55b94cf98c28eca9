"""A stage's function, opened in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vlpipe.pipeline.engine.worker.local_files import here
from vlpipe.pipeline.service import Address, at
from vlpipe.pipeline.stage import MapStage, Work


@contextmanager
def opened(stage: MapStage, torch_threads: int, shared: Address | None = None) -> Iterator[Work]:
    """The stage's function, with torch's threads as the step wants them."""
    if stage.TORCH:
        set_torch_threads(torch_threads)
    with ExitStack() as stack:
        with at(shared):
            work = stack.enter_context(here(stage).open())
        yield work


def set_torch_threads(num: int) -> None:
    """Threads, and MKL's reproducible mode: without it a row's result depends on its place in the batch (measured).

    MKL reads the variable at the first matrix product of the process; later it has no effect.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    import torch

    torch.set_num_threads(num)
