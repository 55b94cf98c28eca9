"""Device, seeds and kernels: what makes a step the same wherever and whenever it runs."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from vlpipe.pipeline.errors import VlpipeError


def pick_device(gpu: bool) -> torch.device:
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise VlpipeError(
            "gpu: true, but torch finds no CUDA device here; install torch for CUDA, or set gpu: false"
        )
    return torch.device("cuda", torch.cuda.current_device())  # Ray Train has chosen it


def seed_all(*what: object) -> None:
    """Seed every global generator by `what`, so that no draw depends on the draws of earlier steps."""
    seed = int.from_bytes(hashlib.sha256(":".join(map(str, what)).encode()).digest()[:8]) >> 1
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def reproducible() -> Iterator[None]:
    """Deterministic kernels where there are any; torch warns of those that are not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
