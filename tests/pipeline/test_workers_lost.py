"""A training with two workers on two nodes loses one of them, with and without its node, and goes on from its checkpoint.

The cluster is that of `test_node_lost`: two nodes with one CPU each, so one worker per node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_node_lost import NODE, Outages, _descendants, nodes, same_bytes, some_part, write

from vlpipe.pipeline.engine.on_ray.worker import START_S

WORKFLOW = """
name: workers
steps:
  world: {use: "demo.world:World", seed: 0, num_web: 8, num_human: 48, num_eval: 8}
  human:
    use: "lists.coco:CocoCaptions"
    annotations: {from: world, path: human_train.json}
    images: {from: world, path: images}
    shard_rows: 16
  tokenizer: {use: "train.tokenizer:TrainTokenizer", from: human, vocab_size: 200}
  pretrain:
    use: "train.train:Train"
    from: human
    tokenizer: {from: tokenizer}
    model:
      {use: "blip:Blip", image_size: 32, patch_size: 8, vision_width: 32, vision_layers: 1, vision_heads: 2, text_width: 32,
       text_layers: 1, text_heads: 2, max_text_length: 24, embed_dim: 16, dropout: 0.0, position: sincos, init_std: 0.08}
    teachers: {ema: {momentum: 0.95}}
    objectives: [{use: "itc:Itc", queue_size: 64, temp: 0.05}, "lm:Lm"]
    streams: {text: {max_length: 20}}
    batch_size: 16
    num_workers: 2
    steps: 60
    checkpoint_every: 10
    log_every: 10
"""


class Losses(Outages):
    """`lose_worker`: the next training loses what `kill` ends, given the nodes of its workers."""

    kill: Callable[[tuple[str, ...]], None] | None = None
    when: Callable[[], bool]

    def tick(self) -> None:
        assert self.executor is not None
        for running in list(self.executor._running.values()):
            if self.kill is not None and running.one.name == "pretrain" and self.when():
                kill, self.kill = self.kill, None
                kill(running.held.nodes)
                self.lost.append("pretrain")

    def worker(self, nodes: tuple[str, ...]) -> None:
        """A worker's process, on the node without the launcher."""
        (node,) = [one for one in self.cluster.worker_nodes if one.node_id == nodes[1]]
        for pid in _descendants(node.all_processes["raylet"][0].process.pid):
            with suppress(OSError):
                if b"TrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return
        raise AssertionError(f"no training worker on {node.node_id}")

    def node(self, nodes: tuple[str, ...]) -> None:
        self._kill(nodes[1])

    def node_for_good(self, nodes: tuple[str, ...]) -> None:
        self._kill(nodes[1], replaced=False)

    def train(self, folder: Path, kill: Callable[[tuple[str, ...]], None] | None, more: str = "") -> Path:
        file, root = write(folder, WORKFLOW + more), folder / "root"
        self.kill, self.when, self.lost = kill, some_part(root), []
        self.run(file, str(root))
        assert self.lost == ([] if kill is None else ["pretrain"])
        return root


def losses(root: Path) -> dict[tuple[int, str], float]:
    (file,) = root.glob("pretrain-*/000000.parquet")
    return {(row["step"], row["name"]): row["value"] for row in pq.read_table(file).to_pylist()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_outlives_a_worker_and_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker alone and a node that is replaced: the same bytes. A node that is not: it goes on with the worker that is
    left, losses to 1e-4.
    """
    monkeypatch.setenv(START_S, "40")  # workers may be asked of a node before its loss is noticed
    with nodes(Losses) as cluster:
        alone = cluster.train(tmp_path / "alone", None)
        same_bytes(cluster.train(tmp_path / "worker", cluster.worker), alone)
        same_bytes(cluster.train(tmp_path / "node", cluster.node), alone)
        fewer = cluster.train(tmp_path / "fewer", cluster.node_for_good, "    least_processes: 1\n")
        assert len(cluster.cluster.worker_nodes) == 1
        assert NODE["num_cpus"] == 1
    found: Any = losses(fewer)
    assert found == pytest.approx(losses(alone), rel=1e-4, abs=1e-6)
