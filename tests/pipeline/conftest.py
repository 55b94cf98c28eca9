import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
if (
    HERE not in sys.path
):  # the toy stages are a user's own stages: full import paths, found by Ray's workers too
    sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (HERE, os.environ.get("PYTHONPATH", "")) if p)

_CACHE = tempfile.TemporaryDirectory(
    prefix="vlpipe-tests-"
)  # digests of outside files: not into the user's own
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(scope="session")
def two_cpus() -> Iterator[str]:
    """The address of a Ray cluster with two CPUs and, by its own account, a GPU, whatever this machine has.

    Tests of how Ray starts and ends start their own; the others save 10 s of CPU with this one.
    """
    from ray.cluster_utils import Cluster

    unneeded = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, **unneeded})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(
    scope="module"
)  # Playwright leaves an event loop running, in which no other test could run its own
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no system Chromium on PATH (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
