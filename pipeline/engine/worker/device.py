"""Selects the device that a stage computes on: a GPU only if its step requests one (`resources: {gpus: 1}`).

The engine sets an environment variable, so that a stage's threads and child processes see it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlpipe.pipeline.errors import VlpipeError

VARIABLE = "VLPIPE_GPUS"  # number of GPUs that the running step requested; unset outside a run


def device_of_step() -> str:
    """Returns the name for `torch.device`: "cuda" or "cpu". Outside a run (a notebook) a GPU is used if there is one.

    Raises VlpipeError if the step requested a GPU and torch finds none.
    """
    asked = os.environ.get(VARIABLE)
    if asked is not None and not float(asked):
        return "cpu"
    if num_gpus():
        return "cuda"
    if asked is not None:
        raise VlpipeError(
            f"the step requests {asked} GPU, but torch finds none on this machine; install torch for CUDA, "
            "or set `gpus: 0` in the step's resources"
        )
    return "cpu"


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def granted(gpus: float) -> Iterator[None]:
    """Within this context, `device_of_step` in this process sees a step that requests `gpus` GPUs."""
    with _set(VARIABLE, f"{gpus:g}"):
        yield


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """Within this context, code that looks for GPUs finds none. No effect if torch has looked for them before."""
    with _set("CUDA_VISIBLE_DEVICES", ""):
        yield


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
