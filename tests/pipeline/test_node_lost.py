"""A node is lost while its workers fetch, train and caption: the run ends, with the bytes of a run on one machine.

A cluster of `ray.cluster_utils`: a head without CPUs, which runs the driver, and two nodes, each a raylet of its own. A node
is lost as in an outage: all its processes get SIGKILL. Another one joins, so that the next step has two again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers import CHAIN, left, run
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.assembly import new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.on_ray.executor import RayExecutor
from vlpipe.pipeline.engine.plan import plan, remember
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
SOON = {  # a lost node is noticed after half a second instead of 15
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 250,
    "health_check_failure_threshold": 2,
}
CAPFILT = """
name: capfilt
steps:
  world: {use: "demo.world:World", seed: 0, num_web: 64, num_human: 32, num_eval: 8}
  images:
    use: "fetching.images:FetchImages"
    list: {from: world, path: web.parquet}
    serve: {demo.test: {from: world, path: images}}
    shard_rows: 16
  human:
    use: "lists.coco:CocoCaptions"
    annotations: {from: world, path: human_train.json}
    images: {from: world, path: images}
    shard_rows: 16
  tokenizer: {use: "train.tokenizer:TrainTokenizer", from: [images, human], vocab_size: 200}
  pretrain:
    use: "train.train:Train"
    from: [images, human]
    tokenizer: {from: tokenizer}
    model:
      {use: "blip:Blip", image_size: 32, patch_size: 8, vision_width: 32, vision_layers: 1, vision_heads: 2, text_width: 32,
       text_layers: 1, text_heads: 2, max_text_length: 24, embed_dim: 16, dropout: 0.0, position: sincos, init_std: 0.08}
    teachers: {ema: {momentum: 0.95}}
    objectives: [{use: "itc:Itc", queue_size: 64, temp: 0.05}, "itm:Itm", "lm:Lm"]
    streams: {text: {max_length: 20}}
    batch_size: 16
    steps: 40
    checkpoint_every: 10
  captions: {use: "caption.generate:Caption", from: images, model: {from: pretrain}, max_length: 8}
  filtered: {use: "filter.itm:ItmFilter", from: captions, model: {from: pretrain}, max_text_length: 20}
  kept: {use: "filter.keep_matched:KeepMatched", from: filtered}
"""


class Outages:
    """A cluster whose nodes are lost. `lose(step, when)`: the node that runs the step, once `when()` is true; once each."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.lost = cluster, list[str]()
        self.executor: RayExecutor | None = None
        self._plans: dict[str, Callable[[], bool]] = {}

    def lose(self, step: str, when: Callable[[], bool]) -> None:
        self._plans[step] = when

    def tick(self) -> None:
        assert self.executor is not None
        for running in list(self.executor._running.values()):
            if (when := self._plans.get(running.one.name)) and when():
                del self._plans[running.one.name]
                self.lost.append(running.one.name)
                self._kill(running.held.node)
                return

    def _kill(self, id: str, replaced: bool = True) -> None:
        (node,) = [one for one in self.cluster.worker_nodes if one.node_id == id]
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in (raylet, *_descendants(raylet)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        if replaced:
            self.cluster.add_node(wait=False, **NODE)

    def run(self, file: Path, root: str, until: str | None = None) -> dict[str, PlannedStep]:
        store = Store(root)
        with locked(store) as run_id:
            steps = plan(Workflow.load(str(file), root=root), store, until)
            remember(steps, store)
            self.executor = RayExecutor(run_id, self.cluster.address)
            try:
                new_run(steps, store, self.executor, Watcher(tick=self.tick)).go()
            finally:
                self.executor.close()
        assert not self._plans
        return {one.name: one for one in steps}


def _descendants(pid: int) -> Iterator[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    todo = [pid]
    while todo:
        children = [child for child, parent in parents.items() if parent == todo[0]]
        todo = [*todo[1:], *children]
        yield from children


@contextmanager
def nodes(kind: type[Outages] = Outages) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    unneeded = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
    head = {**NODE, "num_cpus": 0, **unneeded, "_system_config": SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        yield kind(cluster)
    finally:
        cluster.shutdown()


def some(root: str, pattern: str) -> Callable[[], bool]:
    """True once a file of the root is there: the step is in the middle of its work."""
    fs, path = fsspec.core.url_to_fs(root)

    def when() -> bool:
        fs.invalidate_cache()
        return bool(fs.glob(f"{path}/{pattern}"))

    return when


def some_part(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.rglob("checkpoint*"))


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.yaml").write_text(text)
    return folder / "w.yaml"


def lose_three(outages: Outages, root: str, parts: Path) -> None:
    outages.lose("images", some(root, "images-*/_receipts/*.json"))
    outages.lose("pretrain", some_part(parts))
    outages.lose("captions", some(root, "captions-*/_receipts/*.json"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run on one machine: in a process of its own, whose MKL is in its reproducible mode from the start."""
    folder = tmp_path_factory.mktemp("alone")
    write(folder, CAPFILT)
    command = [str(Path(sys.executable).parent / "vlpipe"), "run", "w.yaml", "--local", "--root", "root"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "root"


def same_bytes(there: Path, here: Path) -> None:
    """Of all files but those that say when: receipts, logs, and the digests of outside files."""

    def kept(root: Path) -> dict[str, str]:
        return {
            name: digest
            for name, digest in left(root).items()
            if "_log/" not in name and name[:7] != "_cache/"
        }

    assert kept(there) == kept(here)


@pytest.mark.slow
def test_a_chain_of_small_steps_outlives_its_node(tmp_path: Path) -> None:
    text = CHAIN.replace("num_rows: 20", "num_rows: 120").replace("by: 3}", "by: 3, seconds: 0.05}")
    (tmp_path / "here").mkdir()
    run(tmp_path / "here", text)
    file, root = write(tmp_path / "there", text), str(tmp_path / "there" / "root")
    with nodes() as outages:
        outages.lose("scale", some(root, "scale-*/_receipts/*.json"))
        outages.run(file, root)
        assert outages.lost == ["scale"]
    same_bytes(Path(root), tmp_path / "here" / "root")


@pytest.mark.slow
def test_capfilt_outlives_nodes_that_fetch_train_and_caption(tmp_path: Path, alone: Path) -> None:
    file, root = write(tmp_path, CAPFILT), str(tmp_path / "root")
    with nodes() as outages:
        lose_three(outages, root, tmp_path / "root")
        outages.run(file, root)
        assert outages.lost == ["images", "pretrain", "captions"]
    same_bytes(Path(root), alone)


@pytest.mark.slow
def test_capfilt_outlives_lost_nodes_on_an_object_store(
    tmp_path: Path,
    alone: Path,
    s3: S3,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parts of a training lie on its node then: it begins again, and ends with the same bytes."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the names of its sockets must be short
    file, root = write(tmp_path, CAPFILT), s3.new_root()
    with nodes() as outages:
        lose_three(outages, root, tmp_path / "tmp")
        outages.run(file, root, until="captions")
        assert outages.lost == ["images", "pretrain", "captions"]
    fs, path = fsspec.core.url_to_fs(root)
    fs.get(path, str(tmp_path / "copy"), recursive=True)
    shutil.copytree(alone, tmp_path / "here", ignore=shutil.ignore_patterns("filtered-*", "kept-*"))
    for copy in ("copy", "here"):
        (tmp_path / copy / "_steps.json").unlink()  # names the steps of the whole plan
    same_bytes(tmp_path / "copy", tmp_path / "here")
