"""Makes a run's code, input files and root available on every node of a cluster. Checked before any work.

Each node reports what it sees. Code, and files below the driver's working directory, are copied to the nodes (Ray's
`runtime_env`) if a node lacks them. A root, or a file elsewhere, that a node does not see is a one-sentence error.
"""

from __future__ import annotations

import functools
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from vlpipe.pipeline.engine.on_ray.connection import Cluster, in_job, node_resources
from vlpipe.pipeline.engine.on_ray.packing import (
    NOT_SHIPPED,
    OWN,
    check_size,
    modules_of,
    own_source,
    place,
    root_below,
)
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.worker import node_probe as probe
from vlpipe.pipeline.engine.worker.node_probe import DRIVER_FOLDER, source_digest
from vlpipe.pipeline.files import files_of
from vlpipe.pipeline.storage.store import Store

ANSWER_S = 120.0  # timeout for a node to answer, in seconds, including the start of a worker


@dataclass
class Needs:
    """What every node must see. modules: top-level name -> digest of its source; root: pickled call of `reads_root`.

    files: path -> (size in bytes, or -1 for a folder; `STEP.PARAMETER` that reads it).
    """

    modules: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    root: bytes = b""

    @classmethod
    def of(cls, steps: Sequence[PlannedStep], root: bytes) -> Needs:
        names = {OWN, *(name for one in steps for name in modules_of(one.keyed.step.stage))}
        files = {path: about for one in steps for path, about in _files_of(one)}
        return cls({name: source_digest(name) for name in sorted(names)}, files, root)


@dataclass
class Lack:
    """What a node lacks: modules, files, and problems with the root (one sentence each)."""

    missing: list[str]
    unseen: list[str]
    problems: list[str]


class Shipping:
    """Checks and copies one run's code and files on the nodes of a cluster."""

    def __init__(self, cluster: Cluster, steps: Sequence[PlannedStep], store: Store) -> None:
        self._cluster, self._store = cluster, store
        self._proof, self._nonce = f"_cache/seen.{uuid.uuid4().hex[:8]}.part", uuid.uuid4().hex
        call = functools.partial(reads_root, store, self._proof, self._nonce)
        self._wanted = Needs.of(steps, cloudpickle.dumps(call))
        self._good: set[str] = set()
        self._asked: dict[str, Any] = {}  # node id -> pending check, for nodes that joined later
        cloudpickle.register_pickle_by_value(probe)

    def prepare(self) -> list[str]:
        """Checks every node, copies what is missing, checks again. Returns the remaining problems, one sentence each."""
        self._store.write_bytes(self._proof, self._nonce.encode())
        lacks = self._ask_all()
        missing = {name for lack in lacks.values() for name in lack.missing}
        below = {path for lack in lacks.values() for path in lack.unseen if self._is_below(path)}
        if (missing or below) and not in_job():
            self._ship(missing, bool(below))
            lacks = self._ask_all()
        self._good = {node for node, lack in lacks.items() if not self._problem_text(lack)}
        return [
            f"node {self._cluster.name_of(node)} {text}"
            for node, lack in lacks.items()
            if (text := self._problem_text(lack))
        ]

    def problem_of(self, node: str) -> str | None:
        """Returns the problem of a new node; empty if there is none, None if it has not answered yet."""
        if node in self._good:
            return ""
        if node not in self._asked:
            self._asked[node] = self._ask(node)
        ready, _ = ray.wait([self._asked[node]], timeout=0)
        if not ready:
            return None
        text = self._problem_text(self._answer(node, self._asked[node]))
        if not text:
            self._good.add(node)
        return text

    def close(self) -> None:
        self._store.remove(self._proof)

    def _ask(self, node: str) -> Any:
        files = [(path, size) for path, (size, _) in self._wanted.files.items()]
        options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": self._cluster.on_node(node)}
        look = ray.remote(probe.look).options(**options)
        return look.remote(self._wanted.modules, files, self._wanted.root)

    def _ask_all(self) -> dict[str, Lack]:
        asked = {node: self._ask(node) for node in node_resources()}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
        return {node: self._answer(node, ref) for node, ref in asked.items()}

    def _answer(self, node: str, ref: Any) -> Lack:
        try:
            return Lack(**ray.get(ref, timeout=0))
        except ray.exceptions.GetTimeoutError:
            return Lack([], [], [f"gave no answer within {ANSWER_S:.0f} s"])
        except ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [""])[-1]
            return Lack([], [], [f"cannot run a task: {type(error).__name__}: {first}"])

    def _problem_text(self, lack: Lack) -> str:
        """Returns the first problem, with what to do about it; empty if there is none."""
        if lack.problems:
            return lack.problems[0]
        if lack.missing:
            return f"cannot import {', '.join(map(repr, lack.missing))} in the driver's version"
        if lack.unseen:
            path = lack.unseen[0]
            who = self._wanted.files[path][1]
            more = f" (and {len(lack.unseen) - 1} more)" if len(lack.unseen) > 1 else ""
            return f"does not see {path}{more}, which {who} reads; put it where every node sees it, or below {os.getcwd()}"
        return ""

    @staticmethod
    def _is_below(path: str) -> bool:
        return Path(path).is_relative_to(os.getcwd())

    def _ship(self, missing: set[str], with_files: bool) -> None:
        """Reconnects to the cluster with copies of what is missing."""
        outside = [name for name in sorted(missing - {OWN}) if not self._is_below(place(name))]
        env: dict[str, Any] = {"env_vars": {DRIVER_FOLDER: os.getcwd()}}
        if with_files or missing - {OWN} - set(outside):
            leave_out = [*NOT_SHIPPED, *root_below(self._store)]
            check_size(os.getcwd(), leave_out, sorted(missing - {OWN}))
            env["working_dir"] = os.getcwd()
            env["excludes"] = [*leave_out, "*.pyc", ".*_cache"]
        with tempfile.TemporaryDirectory() as folder:
            env["py_modules"] = [place(name) for name in outside]
            if OWN in missing:
                env["py_modules"].append(own_source(folder))
            self._cluster.disconnect()
            os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # lists and weights are often git-ignored
            self._cluster.connect(env)


def reads_root(store: Store, rel: str, nonce: str) -> list[str]:
    """Returns problems with the driver's root on the node where this runs, one sentence each; empty if it sees the root.

    rel, nonce: a file of the root, and the text that the driver wrote to it.
    """
    where = f"does not see the root {store.url}"
    todo = "a root must lie where every node sees it: on a shared disk, or s3://..."
    try:
        seen = store.read_bytes(rel).decode()
    except Exception as error:  # any error is reported to the user
        return [f"{where} ({type(error).__name__}); {todo}"]
    return [] if seen == nonce else [f"{where} (a different folder is at that path); {todo}"]


def _files_of(one: PlannedStep) -> Iterator[tuple[str, tuple[int, str]]]:
    for name, file in files_of(one.keyed.step.stage):
        if file.step is None and "://" not in file.path and os.path.exists(file.path):
            path = os.path.abspath(file.path)
            size = -1 if os.path.isdir(path) else os.path.getsize(path)
            yield path, (size, f"{one.name}.{name}")
