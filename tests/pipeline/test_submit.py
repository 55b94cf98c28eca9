"""`vlpipe submit`: a run as a Ray job on a cluster with tokens, seen from a machine that only has its HTTP port."""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import vlpipe
from helpers import left
from ray_clusters import BIN, free_ports, home_with_token, ray_head

from vlpipe.pipeline.cli import submit
from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.engine.on_ray.jobs import Job, Jobs, _Shown, exit_code
from vlpipe.pipeline.errors import VlpipeError

assert submit.app is app  # the import adds the commands
STAGE = '''
"""A user's own stage, beside the YAML: it comes to the cluster with the job."""
import os, time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import pyarrow as pa
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.stage import MapStage, SourceStage

@dataclass(frozen=True, kw_only=True)
class Listed(SourceStage):
    list: ListFile

    def row_schema(self):
        return pa.schema([("id", pa.string())])

    def rows(self):
        yield pa.table({"id": Path(self.list.path).read_text().split()})

    @contextmanager
    def open(self):
        yield lambda table: table

@dataclass(frozen=True, kw_only=True)
class Works(MapStage):
    fails: bool = False
    seconds: float = 0.0

    @contextmanager
    def open(self):
        def work(table):
            assert "HERE" not in os.getcwd() or "LOCAL" in os.environ
            if self.fails:
                raise MemoryError("planted")
            time.sleep(self.seconds)
            return table

        yield work
'''
WORKFLOW = """
name: lab
steps:
  listed: {use: "labsubmit:Listed", list: ids.txt, shard_rows: 2}
  works: {use: "labsubmit:Works", from: listed}
"""


def lab(folder: Path) -> Path:
    """Where `vlpipe` is called: a workflow, its stage, its list, which git ignores."""
    folder.mkdir(parents=True)
    (folder / "labsubmit.py").write_text(STAGE.replace("HERE", str(folder)))
    (folder / "w.yaml").write_text(WORKFLOW)
    (folder / "ids.txt").write_text(" ".join(f"id{n}" for n in range(6)))
    (folder / ".gitignore").write_text("ids.txt\n")
    return folder


@dataclass
class Head:
    """A cluster's head. http, gcs: its addresses; env: of a user whose home has its token."""

    http: str
    gcs: str
    env: dict[str, str]


@contextmanager
def started(folder: Path, *, dashboard: bool) -> Iterator[Head]:
    env = home_with_token(folder, without="RAY_")
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    port, http, agent = free_ports(3)
    options = ["--num-cpus", "2", "--object-store-memory", "80000000"]
    options += ["--dashboard-port", str(http), "--dashboard-agent-listen-port", str(agent)]
    options += ["--include-dashboard", str(dashboard).lower()]
    answers_at = http if dashboard else port
    with ray_head(port, *options, env={**env, "RAY_AUTH_MODE": "token"}, cwd="/", answers_at=answers_at):
        yield Head(f"http://127.0.0.1:{http}", f"127.0.0.1:{port}", env)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pytest.importorskip("aiohttp_cors", reason="ray[default], with the server of jobs, is not installed")
    with started(tmp_path_factory.mktemp("head"), dashboard=True) as found:
        yield found


def call(folder: Path, env: dict[str, str], *args: str | Path, code: int = 0) -> str:
    """What `vlpipe ARGS` writes to both streams."""
    command = [str(BIN / "vlpipe"), *map(str, args)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_submitted_run_gives_the_bytes_of_a_local_one(tmp_path: Path, head: Head) -> None:
    folder = lab(tmp_path / "lab")
    said = call(folder, head.env, "submit", "w.yaml", "--root", tmp_path / "there", "--address", head.http)
    assert "works: 3 shard(s), 6 rows in, 6 out" in said
    (job,) = re.findall(r"submitted (lab-\w{8}) to", said)
    call(folder, head.env | {"LOCAL": "1"}, "run", "w.yaml", "--root", tmp_path / "here", "--local")
    here, there = left(tmp_path / "here"), left(tmp_path / "there")
    for files in (here, there):
        files.pop("_cache/digests.json", None)  # only of files that have lain there for a while
    assert there == here
    listed = call(folder, head.env, "jobs", "--address", head.gcs)  # the token, by the other address
    assert re.search(rf"{job}\s+SUCCEEDED\s.*\slab\s+{tmp_path}/there", listed)
    assert "works: 3 shard(s)" in call(folder, head.env, "logs", job, "--address", head.http)
    call(folder, head.env | {"LOCAL": "1"}, "status", "w.yaml", "--root", tmp_path / "there")


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_run(tmp_path: Path, head: Head) -> None:
    folder = lab(tmp_path / "lab")
    where = ("--root", tmp_path / "root", "--address", head.gcs)
    said = call(folder, head.env, "submit", "w.yaml", "--set", "works.fails=true", *where, code=1)
    assert re.search(r"error: shard \d of step 'works' failed: MemoryError: planted", said)
    assert re.search(r"job lab-\w{8}: FAILED, exit code 1\n", said)
    said = call(folder, head.env, "submit", "w.yaml", "--command", "status", *where)
    assert re.search(r"listed\.rows\s+done", said)
    assert re.search(r"lab: [12] of 3 steps are done", said)


@pytest.mark.slow
def test_a_job_goes_on_without_its_submitter_until_it_is_stopped(tmp_path: Path, head: Head) -> None:
    folder, root = lab(tmp_path / "lab"), tmp_path / "root"
    where = ["--root", str(root), "--address", head.http, "--set", "works.seconds=300"]
    command = [str(BIN / "vlpipe"), "submit", "w.yaml", *where]
    process = subprocess.Popen(command, cwd=folder, env=head.env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(root.glob("works-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    (job,) = re.findall(r"(lab-\w{8}) goes on", said)
    assert re.search(rf"{job}\s+RUNNING", call(folder, head.env, "jobs", "--address", head.http))
    call(folder, head.env, "stop", job, "--address", head.http)
    said = call(folder, head.env, "logs", job, "--follow", "--address", head.http, code=143)
    assert f"job {job}: STOPPED" in said


@pytest.mark.slow
def test_a_wrong_token_and_no_token_are_one_sentence(tmp_path: Path, head: Head) -> None:
    env = head.env | {"HOME": str(tmp_path)}
    for token in ({}, {"RAY_AUTH_TOKEN": "fedcba9876543210" * 4}):
        said = call(tmp_path, env | token, "jobs", "--address", head.http, code=1)
        assert "requires a token that this machine does not have" in said
        assert said.count("\n") == 1
    assert not (tmp_path / ".ray").exists()


@pytest.mark.slow
def test_a_head_without_job_server_is_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path / "head", dashboard=False) as head:
        said = call(tmp_path, head.env, "jobs", "--address", head.gcs, code=1)
    assert "no job server" in said
    assert "install its head with `pip install 'ray[default]'`" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://127.0.0.1:10001", "a job is submitted over HTTP, not by Ray Client"),
        ("http://127.0.0.1:1", "no job server answers at http://127.0.0.1:1"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("head", "wanted HOST:PORT"),
    ],
)
def test_an_address_without_job_server_is_one_sentence(address: str, said: str) -> None:
    with pytest.raises(VlpipeError, match=re.escape(said)):
        Jobs(address)


def test_what_cannot_be_submitted_is_said_before_the_cluster_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lab(tmp_path / "lab")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(other)
    no_cluster = ("--address", "http://127.0.0.1:1")
    said = " ".join(vlpipe("submit", folder / "w.yaml", *no_cluster, code=1))
    assert f"{folder}/w.yaml is outside of {other}, which is copied to the cluster" in said
    monkeypatch.chdir(folder)
    said = " ".join(vlpipe("submit", "w.yaml", "--command", "prune", *no_cluster, code=2))
    assert "wanted one of run, plan, status, got 'prune'" in said
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "aiohttp":
            raise ImportError("No module named 'aiohttp'", name="aiohttp")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    said = " ".join(vlpipe("submit", "w.yaml", *no_cluster, code=1))
    assert said.endswith("jobs need aiohttp: pip install 'vlpipe[cluster]'")


def test_output_that_comes_again_after_a_lost_connection_is_shown_once() -> None:
    seen: list[str] = []
    shown = _Shown(seen.append)
    end = shown.part(0, "one\n")
    shown.part(end, "two\n")
    end = shown.part(0, "one\ntw")  # from the beginning, cut otherwise
    shown.part(end, "o\nthree\n")
    shown.all("one\ntwo\nthree\nfour\n")
    assert "".join(seen) == "one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize(
    ("state", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 143)],
)
def test_exit_codes(state: str, driver: int | None, code: int) -> None:
    assert exit_code(Job("a", state, driver, "", 0.0, {})) == code
