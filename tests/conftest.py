"""Which tests start first: no process of pytest-xdist shall be left alone with a slow one at the end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Small networks on shared cores: threads that wait for each other cost more than they compute. Steps set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# MKL's results then do not depend on a row's place in its batch; read at its first use in a process.
os.environ.setdefault("MKL_CBWR", "AUTO")
# Tests start hundreds of processes; each would compile the package anew, as would each process of pytest the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Ray's workers, by default nicer than the tests beside them, would wait for those, up to a test's timeout.
os.environ.setdefault("RAY_worker_niceness", "0")

gc.disable()  # until the tests are collected: what is imported stays


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is there when all tests are collected is never looked at again by the garbage collector."""
    found = yield
    gc.freeze()
    gc.enable()
    return found


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries look for leaks when the interpreter ends


# Files that take more than 10 s of CPU, with those seconds, roughly: the order counts.
SLOW = {
    "pipeline/test_incremental.py": 100,
    "stages/train/test_killed.py": 110,
    "pipeline/test_ray.py": 100,
    "pipeline/test_pools.py": 80,
    "pipeline/test_one_bad_value.py": 35,
    "pipeline/test_damage.py": 35,
    "pipeline/test_forget.py": 28,
    "pipeline/test_lock.py": 22,
    "workflows/test_blip_capfilt.py": 20,
    "stages/features/test_s3d.py": 20,
    "stages/features/test_video_workflow.py": 20,
    "stages/dedup/test_same_everywhere.py": 18,
    "pipeline/test_two_nodes.py": 18,
    "pipeline/test_progress.py": 16,
    "pipeline/test_kill.py": 14,
    "stages/features/test_howto100m_2d3d.py": 13,
    "pipeline/test_row_groups.py": 13,
    "stages/vision_language/test_local.py": 13,
    "stages/train/test_fit.py": 12,
    "stages/train/test_ranks.py": 11,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first. With --dist worksteal each process begins with a slice of the list; so each slice begins with some.

    The tests of a file stay together: they share fixtures.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    costs = {f: SLOW[name] for f in files if (name := f.relative_to(HERE).as_posix()) in SLOW}
    rest = [item for f, group in files.items() if f not in costs for item in group]
    num = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    heads: list[list[pytest.Item]] = [[] for _ in range(num)]
    seconds = [0] * num
    for file in sorted(costs, key=lambda f: (-costs[f], f)):
        least = seconds.index(min(seconds))
        heads[least] += files[file]
        seconds[least] += costs[file]
    left, found = len(items), []
    for k, head in enumerate(heads):  # pytest-xdist gives process k the next left // (num - k) tests
        more = max(left // (num - k) - len(head), 0)
        found += head + rest[:more]
        rest = rest[more:]
        left = len(items) - len(found)
    items[:] = found + rest
