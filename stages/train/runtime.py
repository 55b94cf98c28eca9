"""Device choice, seeding and deterministic kernels, so that a step is reproducible."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from vlpipe.pipeline.errors import VlpipeError, one_line


def pick_device(gpu: bool) -> torch.device:
    """Returns the CPU, or with `gpu` the current CUDA device. Raises VlpipeError if torch finds no CUDA device."""
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise VlpipeError(
            "gpu: true, but torch finds no CUDA device on this machine; install torch for CUDA, or set gpu: false"
        )
    return torch.device("cuda", torch.cuda.current_device())  # set by Ray Train


def seed_all(*what: object) -> None:
    """Seeds the global random generators of torch, numpy and `random` with a hash of `what`."""
    seed = int.from_bytes(hashlib.sha256(":".join(map(str, what)).encode()).digest()[:8]) >> 1
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def reproducible(deterministic: bool = True) -> Iterator[None]:
    """Context manager in which torch uses deterministic kernels, unless `deterministic` is false.

    Raises VlpipeError for an operation that has none.
    """
    if not deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for deterministic cuBLAS
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise VlpipeError(
            f"deterministic: true, but an operation has no deterministic implementation: {one_line(str(error), 200)}; "
            "set deterministic: false to train without the same weights from each run"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
