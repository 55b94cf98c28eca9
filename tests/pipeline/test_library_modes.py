"""Numbers of threads, and modes of MKL and OpenMP, are set before anything is computed: each library reads its own once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOY = """
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass

from vlpipe.pipeline.stage import MapStage


@dataclass(frozen=True, kw_only=True)
class Says(MapStage):
    def preflight(self):
        modes = [os.environ.get(name) for name in ("MKL_CBWR", "GOMP_SPINCOUNT")]
        return [f"modes {modes}, torch {'torch' in sys.modules}"]

    @contextmanager
    def open(self):
        yield lambda rows: rows
"""


def modes(tmp_path: Path, **given: str) -> str:
    """Returns what `plan` prints of a stage that says the modes, started with the variables `given`."""
    (tmp_path / "says.py").write_text(TOY)
    (tmp_path / "w.yaml").write_text(
        'name: w\nsteps:\n  list: {use: "demo.world:World", num_web: 1, num_human: 1, num_eval: 1}\n'
        '  says: {use: "says:Says", from: list}\n'
    )
    names = ("MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "plan", "w.yaml", "--root", "root"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_they_are_set_when_stages_are_planned(tmp_path: Path) -> None:
    assert "says: modes ['AUTO', '1000'], torch False" in modes(tmp_path)


def test_a_users_own_are_kept(tmp_path: Path) -> None:
    assert "modes ['COMPATIBLE', None]" in modes(tmp_path, MKL_CBWR="COMPATIBLE", OMP_WAIT_POLICY="active")


PRODUCT = """
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
import numpy as np
from vlpipe.pipeline.stage import GatherStage, MapStage


def product():
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((n, 512)).astype(np.float32) for n in (701, 1003))
    return hashlib.sha256((one @ other.T).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Multiplies(MapStage):
    @contextmanager
    def open(self):
        yield lambda rows: product()
"""


def test_products_of_numpy_do_not_depend_on_the_cores_of_the_machine(tmp_path: Path) -> None:
    """Ray sets OMP_NUM_THREADS, `--local` has that of the shell: both would give other last bits."""
    (tmp_path / "multiplies.py").write_text(PRODUCT)
    code = (
        "from multiplies import Multiplies, product\n"
        "from vlpipe.pipeline.engine.worker.open_stage import opened, set_blas_threads\n"
        "with opened(Multiplies(), 4) as work: print(work(None))\n"
        "set_blas_threads(2); print(product())"
    )
    found = []
    for num in ("1", "2"):
        env = {**os.environ, "OPENBLAS_NUM_THREADS": num, "OMP_NUM_THREADS": num}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert found[0] == found[1]
