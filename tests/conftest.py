"""Slow tests start first, so that no process of pytest-xdist is left alone with one at the end."""

from __future__ import annotations

import os

import pytest

# Small networks on shared cores: threads that wait for each other cost more than they compute. Steps set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Tests start hundreds of processes; each would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Ray's workers, by default nicer than the tests beside them, would wait for those, up to a test's timeout.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
