"""What the engine costs: two overlapped 50 ms stages beside the ideal, Ray Data and a plain loop; rows; a second run.

python benchmarks/engine.py            # about 5 minutes; prints Markdown
python benchmarks/engine.py --write    # and puts it into engine.md and engine.json beside this file
python benchmarks/engine.py --beside FILE.json   # only the steps of different kinds; the file keeps the figures
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_page import OURS, TASK_ACTOR, TASK_GATHER, beside_table, markdown
from peers import ray_data, two_processes
from record import machine

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Executor, Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.on_ray.executor import RayExecutor
from vlpipe.pipeline.engine.plan import plan, remember
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

HERE = Path(__file__).parent
SECONDS = 0.05
ROWS_PER_SHARD = 20
ROUNDS = {64: 3, 256: 2}  # shards -> how often
ENOUGH_S = 170.0  # no further round is begun after this
NUM_LIGHT_ROWS = 200_000
IN_ACTORS = f"{OURS}, stages in actors"
BESIDE_SHARDS, BESIDE_S, GATHER_S = 64, 0.25, 8.0
BESIDE_ROUNDS = 3

STEPS = """
name: engine
steps:
  numbers: {{use: "sleepers:Numbers", num_rows: {rows}, shard_rows: {shard_rows}}}
"""
STAGE = '  {name}: {{use: "sleepers:{use}", from: {above}, seconds: {seconds}, calls: "{calls}"}}\n'


def write_workflow(folder: Path, num_rows: int, shard_rows: int, *stages: str, seconds: float = 0.0) -> Path:
    """Stages one below the other, named a, b, ..., each with a file that counts its rows when seconds is 0."""
    text, above = STEPS.format(rows=num_rows, shard_rows=shard_rows), "numbers"
    for name, use in zip("ab", stages, strict=False):
        calls = "" if seconds else folder / f"calls_{name}"
        text += STAGE.format(name=name, use=use, above=above, seconds=seconds, calls=calls)
        above = name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.yaml").write_text(text)
    return folder / "engine.yaml"


def run(workflow: Path, executor: Executor, until: str | None = None) -> float:
    """Wall seconds of what `vlpipe run` does once its executor is there."""
    began = time.monotonic()
    root = workflow.parent / "root"
    root.mkdir(exist_ok=True)
    found, store = Workflow.load(str(workflow), root=str(root)), Store(str(root))
    with locked(store):
        steps = plan(found, store, until)
        if any(not one.is_done for one in steps):
            remember(steps, store)
            new_run(steps, store, executor, Watcher()).go()
    return time.monotonic() - began


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away; its name is short because Ray puts sockets below it."""
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        yield Path(folder)


@contextmanager
def cluster(folder: Path) -> Iterator[RayExecutor]:
    """A Ray cluster of two CPUs, whatever this machine has; in a folder of its own, so that it disturbs no other."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(HERE), os.environ.get("PYTHONPATH")) if p)
    head = {"num_cpus": 2, "temp_dir": str(folder)}
    ray_cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        executor = RayExecutor("benchmark", ray_cluster.address)
        try:
            yield executor
        finally:
            executor.close()
    finally:
        ray_cluster.shutdown()


class Bench:
    """Everything in one scratch folder on one cluster."""

    def __init__(self, folder: Path, executor: RayExecutor) -> None:
        self.folder, self.executor = folder, executor
        self.num_runs = 0

    def fresh(self, *parts: str) -> Path:
        self.num_runs += 1
        return self.folder.joinpath(f"run{self.num_runs:03d}", *parts)

    def prepared(self, num_shards: int) -> list[Path]:
        """The source step's shards, made once and not timed."""
        made = self.folder / f"source{num_shards}"
        if not made.exists():
            run(write_workflow(made, num_shards * ROWS_PER_SHARD, ROWS_PER_SHARD), local_executor())
        return sorted(made.glob("root/numbers-*/*[0-9].parquet"))

    def warm_up(self) -> None:
        """A worker for each CPU: Ray ends idle ones, so they are made anew before each timing."""
        run(write_workflow(self.fresh(), 8, 1, "Sleep", "Sleep", seconds=0.1), self.executor)

    def ours(self, num_shards: int, stage: str = "Sleep") -> tuple[float, float]:
        self.warm_up()
        to = self.fresh()
        shutil.copytree(self.prepared(num_shards)[0].parents[1], to / "root")
        rows = num_shards * ROWS_PER_SHARD
        workflow = write_workflow(to, rows, ROWS_PER_SHARD, stage, stage, seconds=SECONDS)
        return self._timed(to / "root", lambda: run(workflow, self.executor))

    def beside(self) -> list[dict[str, Any]]:
        """Steps of different kinds at the same time, on two CPUs: a pool fed by tasks, a gather step beside tasks."""
        tasks_s = BESIDE_SHARDS * BESIDE_S
        ideals = {TASK_ACTOR: tasks_s + BESIDE_S, TASK_GATHER: (tasks_s + GATHER_S) / 2}
        found = []
        for _ in range(BESIDE_ROUNDS):
            for case, ideal in ideals.items():
                self.warm_up()
                to = self.fresh()
                shutil.copytree(self.prepared(BESIDE_SHARDS)[0].parents[1], to / "root")
                num_rows, second = BESIDE_SHARDS * ROWS_PER_SHARD, "SleepInActor"
                workflow = write_workflow(to, num_rows, ROWS_PER_SHARD, "Sleep", second, seconds=BESIDE_S)
                if case == TASK_GATHER:
                    above = workflow.read_text().partition("  b:")[0]
                    gather = f'  g: {{use: "sleepers:Gather", from: numbers, seconds: {GATHER_S}}}\n'
                    workflow.write_text(above.replace("  a:", gather + "  a:"))
                wall = run(workflow, self.executor)
                found.append({"case": case, "wall_s": wall, "ideal_s": ideal})
                say(f"{case}: {wall:.2f} s, ideal {ideal:.2f} s")
        return found

    def peer(self, num_shards: int, system: Callable[..., float]) -> tuple[float, float]:
        paths, to = [str(path) for path in self.prepared(num_shards)], self.fresh()
        for name in "ab":
            (to / name).mkdir(parents=True)
        return self._timed(to, lambda: system(paths, [str(to / "a"), str(to / "b")], SECONDS))

    @staticmethod
    def _timed(folder: Path, go: Callable[[], float]) -> tuple[float, float]:
        """Wall seconds, and of these the seconds in which no shard was under way: before the first, after the last."""
        os.sync()
        wall = go()
        done = [path.stat().st_mtime for path in folder.glob("[ab]*/*[0-9].parquet")]
        return wall, max(0.0, wall - SECONDS - (max(done) - min(done)))

    def overlapped(self) -> list[dict[str, Any]]:
        """Every system in turn, so that what else the machine does meets all of them alike."""
        systems: dict[str, Callable[[int], tuple[float, float]]] = {
            OURS: self.ours,
            IN_ACTORS: lambda n: self.ours(n, "SleepInActor"),
            "plain loop, a process per stage": lambda n: self.peer(n, two_processes),
        }
        if missing() is None:
            systems["Ray Data, an actor per stage"] = lambda n: self.peer(n, ray_data)
            self.peer(4, ray_data)  # its imports
        began, found = time.monotonic(), []
        for turn in range(max(ROUNDS.values())):
            for num_shards in (n for n, rounds in ROUNDS.items() if turn < rounds):
                for name, go in systems.items():
                    if name == IN_ACTORS and num_shards > min(ROUNDS):
                        continue
                    if turn == 0 or time.monotonic() - began < ENOUGH_S:
                        wall, idle = go(num_shards)
                        found.append(
                            {"system": name, "num_shards": num_shards, "wall_s": wall, "idle_s": idle}
                        )
                        say(f"{name}, {num_shards} shards: {wall:.2f} s")
        return found

    def light_rows(self) -> dict[str, Any]:
        """A stage that does nothing, over many rows in shards of the usual size; and one shard after another here."""
        num_shards = NUM_LIGHT_ROWS // 10_000
        workflow = write_workflow(self.fresh(), NUM_LIGHT_ROWS, 10_000, "Sleep")
        run(workflow, local_executor(), until="numbers")
        self.warm_up()
        on_ray = run(workflow, self.executor)
        small = write_workflow(self.fresh(), 256 * ROWS_PER_SHARD, ROWS_PER_SHARD, "Sleep")
        run(small, local_executor(), until="numbers")
        here = run(small, local_executor())
        say(f"{NUM_LIGHT_ROWS} rows: {on_ray:.2f} s; 256 shards in one process: {here:.2f} s")
        return {
            "num_rows": NUM_LIGHT_ROWS,
            "num_shards": num_shards,
            "wall_s": on_ray,
            "local_shard_s": here / 256,
        }

    def second_run(self) -> dict[str, Any]:
        """Rows the stages were called with: in a first run, in a second, and in one after its manifests were lost."""
        workflow = write_workflow(self.fresh(), 64 * ROWS_PER_SHARD, ROWS_PER_SHARD, "Quarter", "Sleep")
        root, calls = workflow.parent / "root", sorted(workflow.parent / f"calls_{name}" for name in "ab")
        found: dict[str, Any] = {}
        for name in ("first", "second", "without_manifests"):
            if name == "without_manifests":  # as if killed just before the steps were committed
                for manifest in root.glob("[ab]-*/manifest.json"):
                    manifest.unlink()
            before = sum(path.stat().st_size for path in calls if path.exists())
            seconds = run(workflow, self.executor)
            found[name] = {"rows": sum(path.stat().st_size for path in calls) - before, "wall_s": seconds}
        return found


def missing() -> str | None:
    """Why Ray Data cannot be run; None when it can."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        return f"Ray Data was skipped: {error}. `pip install 'ray[data]'`"
    return None


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def only_beside(file: Path) -> None:
    with scratch() as folder, cluster(folder / "ray") as executor:
        found = Bench(folder, executor).beside()
    print(beside_table(found, []))
    file.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write engine.md and engine.json")
    parser.add_argument("--beside", metavar="FILE", help="only steps of different kinds, into this JSON file")
    args = parser.parse_args()
    if args.beside:
        only_beside(Path(args.beside))
        return
    found: dict[str, Any] = {"machine": machine(), "seconds": SECONDS, "skipped": missing()}
    with scratch() as folder, cluster(folder / "ray") as executor:
        bench = Bench(folder, executor)
        found |= {"light_rows": bench.light_rows(), "second_run": bench.second_run()}
        found |= {"overlapped": bench.overlapped(), "beside": bench.beside()}
    old = json.loads((HERE / "engine.json").read_text())
    found["beside_before"] = old.get("beside_before", [])
    found["machine"]["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    page = markdown(found)
    print(page)
    if args.write:
        (HERE / "engine.md").write_text(page)
        (HERE / "engine.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
