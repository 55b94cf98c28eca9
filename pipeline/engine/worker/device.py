"""Which device a stage computes on: a GPU only when its step asks for one (`resources: {gpus: 1}`).

The engine says so in the environment, so that threads and child processes of a stage hear it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlpipe.pipeline.errors import VlpipeError

VARIABLE = "VLPIPE_GPUS"  # how many the step at work here asked for; unset outside a run


def device_of_step() -> str:
    """For `torch.device`: "cuda" or "cpu". Outside a run (a notebook) a GPU is used when there is one.

    VlpipeError when the step asked for a GPU and torch finds none.
    """
    asked = os.environ.get(VARIABLE)
    if asked is not None and not float(asked):
        return "cpu"
    if num_gpus():
        return "cuda"
    if asked is not None:
        raise VlpipeError(
            f"the step asks for {asked} GPU, torch finds none here; install torch for CUDA, or ask for none"
        )
    return "cpu"


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def granted(gpus: float) -> Iterator[None]:
    """While entered, what runs in this process has been granted so many GPUs."""
    with _set(VARIABLE, f"{gpus:g}"):
        yield


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """While entered, code that looks for itself finds no GPU either. Too late once torch has looked in this process."""
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
