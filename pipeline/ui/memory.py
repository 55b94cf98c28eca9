"""Memory of the page's process: what a request used goes back to the system when the request is answered."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa

# of glibc's mallopt: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
SETTINGS = ((-8, 2), (-3, 64 << 10), (-1, 128 << 10))


def return_freed_memory() -> None:
    """Sets Arrow's and C's allocators so that they keep little of what is freed. Called once, before threads start.

    Each thread otherwise keeps what its largest request took: 653 MB over 2,000,000 rows, not 481 (`benchmarks/ui.md`).
    Does nothing for C libraries other than glibc.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for name, value in SETTINGS:
            libc.mallopt(name, value)
