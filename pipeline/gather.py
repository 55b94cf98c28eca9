"""One gather stage: all its inputs at once; rows cut into shards, artifacts moved in whole, parts kept when it is killed."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import here
from vlpipe.pipeline.forgotten import Forgotten, digest_of, read_forgotten
from vlpipe.pipeline.keys import sha256_json
from vlpipe.pipeline.manifest import STEP_FILE, hash_folder
from vlpipe.pipeline.receipt import Receipt, run_path, shard_path, write_receipt, write_rejects
from vlpipe.pipeline.shard import Heavy, Reject, Shard, check_conserved, heavy_names, write_shard
from vlpipe.pipeline.source import recorded_hash, running_source
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, SourceStage
from vlpipe.pipeline.store import Store
from vlpipe.pipeline.work import set_torch_threads

Launch = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class ListRows(GatherStage):
    """The list of a source stage, cut in order into shards keyed by content: a longer list shares the full ones."""

    source: SourceStage

    def identity(self, use: str) -> tuple[str | int, ...]:
        return ("rows", *self.source.identity(use))

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return self.source.row_schema()

    def run(self, job: Job) -> None:
        for table in self.source.rows():
            job.emit(table)


@dataclass(frozen=True, kw_only=True)
class GatherTask:
    """Everything a worker needs for a gather step."""

    store: Store
    step: str
    stage: GatherStage
    inputs: tuple[Dataset, ...]
    schema_out: pa.Schema
    folder: str
    inputs_digest: str
    shard_rows: int = 10_000
    torch_threads: int = 1


@dataclass(frozen=True)
class Gathered:
    receipts: list[Receipt]
    artifacts: dict[str, str]  # relative path -> sha256
    sources: tuple[
        str, ...
    ] = ()  # hashes of the code that made its parts: several where a killed run's parts were used


def launch_here(fn: Callable[[Any], None], config: Any, num_workers: int = 1, gpu: bool = False) -> None:
    """`--local`: a training step runs in this process."""
    if num_workers != 1:
        raise VlpipeError(
            f"--local runs one training worker, num_workers is {num_workers}; leave --local out to use Ray"
        )
    fn(config)


def say_to(store: Store, folder: str) -> Callable[[str], None]:
    """Lines for the person watching go to a file on the root, which the driver follows."""
    if not store.is_local:
        return print
    path = Path(store.path(f"{folder}/_log/said.txt"))
    path.parent.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        with path.open("a") as file:
            file.write(line.rstrip("\n") + "\n")

    return say


def run_gather(task: GatherTask, launch: Launch = launch_here) -> Gathered:
    """Run the stage and commit: rejects, shards and receipts, artifacts. The manifest is the driver's, last of all."""
    began = time.time()
    source = running_source(task.stage).hash  # the code as it is now, before any of it runs
    if task.stage.TORCH:
        set_torch_threads(task.torch_threads)
    clear_unfinished(task.store, task.folder)
    with _folders(task) as (work, artifacts):
        sources = _note_source(work, source)
        cutter = _Cutter(task, read_forgotten(task.store) if rows_enter(task) else Forgotten())
        job = Job(
            inputs=task.inputs,
            work=work,
            artifacts=artifacts,
            emit=cutter.emit,
            reject=cutter.rejects.extend,
            launch=launch,
            say=say_to(task.store, task.folder),
        )
        here(task.stage).run(job)
        receipts = cutter.finish(time.time() - began)
        hashes = hash_folder(artifacts)
        if hashes:
            task.store.move_in(artifacts, f"{task.folder}/artifacts")
    return Gathered(receipts, hashes, (*sources, recorded_hash(task.stage)))


SOURCES = "sources"  # beside a folder of parts: hashes of the code that worked on them, one a line


def _note_source(work: str, source: str) -> list[str]:
    """Write down which code works on these parts from now on; returns which did before."""
    file = Path(f"{work}.{SOURCES}")
    before = file.read_text().split() if file.exists() and any(Path(work).iterdir()) else []
    file.write_text("".join(f"{one}\n" for one in dict.fromkeys([*before, source])))
    return before


def part_sources(store: Store, folder: str) -> set[str]:
    """Hashes of the code that made the parts which a killed run left."""
    if not store.is_local:
        return set()
    found = Path(store.path(f"{folder}/work")).glob(f"*.{SOURCES}")
    used = [file for file in found if (parts := file.with_suffix("")).is_dir() and any(parts.iterdir())]
    return {line for file in used for line in file.read_text().split()}


def rows_enter(task: GatherTask) -> bool:
    """Does this step bring rows into the root? Then it must not bring forgotten ones."""
    return not task.inputs and "id" in task.schema_out.names


def clear_unfinished(store: Store, folder: str) -> None:
    """What an unfinished or outdated run left; its resumable parts in `work/` stay."""
    store.remove(f"{folder}/manifest.json")
    for name in store.list(folder):
        if name not in ("work", STEP_FILE):
            store.remove(f"{folder}/{name}")


class _folders:  # reads as a function where it is used
    """A folder for resumable parts and one for artifacts in the making; both local."""

    def __init__(self, task: GatherTask) -> None:
        self._temporary = ""
        if task.store.is_local:
            base = task.store.path(task.folder)
        else:  # parts of a killed run are lost when the root is an object store
            base = self._temporary = tempfile.mkdtemp(prefix="vlpipe-")
        self.work = f"{base}/work/{task.inputs_digest[:32]}"
        self.artifacts = f"{base}/artifacts.{uuid.uuid4().hex[:8]}.part"

    def __enter__(self) -> tuple[str, str]:
        for folder in (self.work, self.artifacts):
            Path(folder).mkdir(parents=True, exist_ok=True)
        return self.work, self.artifacts

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.artifacts, ignore_errors=True)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)


@dataclass
class _Cutter:
    """Cuts emitted rows into shards of `shard_rows`; their key is their content.

    Forgotten rows are taken out after the cut, and count in the key: the shards after them stay what they were.
    """

    task: GatherTask
    forgotten: Forgotten
    rejects: list[Reject] = field(default_factory=list)
    shards: list[tuple[Shard, int, dict[str, Any]]] = field(default_factory=list)
    _pending: list[pa.Table] = field(default_factory=list)

    def emit(self, table: pa.Table) -> None:
        self._pending.append(table.select(self.task.schema_out.names).cast(self.task.schema_out))
        if sum(t.num_rows for t in self._pending) >= self.task.shard_rows:
            self._cut(final=False)

    def _cut(self, *, final: bool) -> None:
        if not self._pending:
            return
        table, size = pa.concat_tables(self._pending), self.task.shard_rows
        stop = table.num_rows if final else table.num_rows - table.num_rows % size
        for start in range(0, stop, size):
            self._write(table.slice(start, min(size, stop - start)))
        rest = table.slice(stop)
        self._pending = [rest] if rest.num_rows else []

    def _write(self, rows: pa.Table) -> None:
        path = shard_path(self.task.folder, len(self.shards))
        stats: dict[str, dict[str, Any]] = {}
        listed, (rows, gone) = rows, self.forgotten.split(rows) if self.forgotten else (rows, [])
        self.rejects.extend(gone)
        shard = write_shard(self.task.store, path, [rows], self.task.schema_out, stats=stats)
        pointers = tuple(
            Heavy(name, path, shard.digest) for name in sorted(heavy_names(self.task.schema_out))
        )
        key = sha256_json("content", digest_of(listed, self.task.schema_out) if gone else shard.digest)
        full = Shard(path=path, num_rows=shard.num_rows, digest=shard.digest, key=key, heavy=pointers)
        self.shards.append((full, self.task.store.size(path), stats))

    def finish(self, seconds: float) -> list[Receipt]:
        self._cut(final=True)
        rows_in = sum(d.num_rows for d in self.task.inputs)
        if self.task.stage.CONSERVES:
            self._check_conserved()
        codes, rejects_digest = write_rejects(
            self.task.store, self.task.folder, 0, self.task.step, self.rejects
        )
        if codes and not self.shards:
            self._write(self.task.schema_out.empty_table())
        run = {"seconds": round(seconds, 3), "host": platform.node(), "attempts": 1}
        if not self.shards:
            self.task.store.write_json(run_path(self.task.folder), run)
        receipts = [
            Receipt(
                index=index,
                shard=shard,
                bytes=size,
                rows_in=rows_in if index == 0 else 0,
                input_digest=self.task.inputs_digest,
                rejects=codes if index == 0 else {},
                rejects_digest=rejects_digest if index == 0 else "",
                columns=stats,
                source=recorded_hash(self.task.stage),
                run=run if index == 0 else {},
            )
            for index, (shard, size, stats) in enumerate(self.shards)
        ]
        for receipt in receipts:
            write_receipt(self.task.store, self.task.folder, receipt)
        return receipts

    def _check_conserved(self) -> None:
        def ids(datasets: Sequence[Dataset]) -> Iterator[str]:
            for one in datasets:
                for batch in one.batches(["id"]):
                    yield from batch["id"].to_pylist()

        made = Dataset(
            self.task.store, self.task.step, self.task.schema_out, tuple(s for s, _, _ in self.shards)
        )
        rejected = Counter(r.id for r in self.rejects)
        check_conserved(
            f"step {self.task.step}", Counter(ids(self.task.inputs)), Counter(ids([made])), rejected
        )
