"""Runs one gather stage on all its inputs: cuts rows into shards, commits artifacts, keeps resumable parts if killed."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.manifest import hash_folder
from vlpipe.pipeline.engine.records.receipts import Receipt, run_path, shard_path, write_receipt
from vlpipe.pipeline.engine.records.rejects import RejectsWriter
from vlpipe.pipeline.engine.worker.hooks import Excluded, Hooks
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.conform import OwnIds, conform
from vlpipe.pipeline.parquet.row_conservation import IdHashes, check_conserved_large
from vlpipe.pipeline.shard import Heavy, Reject, Shard, ShardWriter, heavy_names, write_shard
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.digests import sha256_json
from vlpipe.pipeline.storage.file_names import STEP_FILE, is_engines
from vlpipe.pipeline.storage.store import Store, sha256_file

Launch = Callable[..., None]


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
    hooks: Hooks
    shard_rows: int = 10_000
    torch_threads: int = 1


@dataclass(frozen=True)
class GatherResult:
    """What a gather step has committed, for the driver's manifest."""

    receipts: list[Receipt]
    artifacts: dict[str, str]  # relative path -> sha256
    sources: tuple[str, ...] = ()  # hashes of the code that made it; several if a killed run was resumed


def launch_here(fn: Callable[[Any], None], config: Any, num_workers: int = 1, gpu: bool = False) -> None:
    """Runs a training step of `--local` in this process. Raises VlpipeError if `num_workers` is not 1."""
    if num_workers != 1:
        raise VlpipeError(
            f"--local runs one training worker, but num_workers is {num_workers}; set num_workers: 1, or processes: 1 where "
            "the step has it, which keeps the step's key, or leave out --local to train on Ray"
        )
    fn(config)


def run_gather(task: GatherTask, launch: Launch = launch_here) -> GatherResult:
    """Runs the stage and commits rejects, shards, receipts and artifacts. The driver writes the manifest last."""
    began = time.monotonic()
    hooks, source = task.hooks, task.hooks.running_code(task.stage)
    clear_unfinished(task.store, task.folder)
    with (
        hooks.captured(task.store, f"{task.folder}/_log/output.txt"),
        _folders(task) as (work, artifacts),
        RejectsWriter(task.store, task.folder, 0, task.step) as rejects,
    ):
        sources = _note_source(work, source)
        cutter = _Cutter(task, hooks.excluded(task.store) if rows_enter(task) else None, rejects)
        job = Job(
            inputs=task.inputs,
            work=work,
            artifacts=artifacts,
            emit=cutter.emit,
            reject=cutter.reject,
            launch=launch,
            say=hooks.saying(task.store, task.folder),
        )
        hooks.prepared(task.stage, task.torch_threads).run(job)
        receipts = cutter.finish(time.monotonic() - began, job.spent)
        hashes = hash_folder(artifacts)
        if hashes:
            task.store.move_in(artifacts, f"{task.folder}/artifacts")
    return GatherResult(receipts, hashes, (*sources, hooks.recorded_code(task.stage)))


SOURCES = (
    "sources"  # suffix of the file next to a folder of parts: hashes of the code that made them, one per line
)


def _note_source(work: str, source: str) -> list[str]:
    """Records that code with hash `source` works on the resumable parts in the folder `work`.

    Returns the hashes of the code that made the parts already there.
    """
    file = Path(f"{work}.{SOURCES}")
    before = file.read_text().split() if file.exists() and any(Path(work).iterdir()) else []
    file.write_text("".join(f"{one}\n" for one in dict.fromkeys([*before, source])))
    return before


def part_sources(store: Store, folder: str) -> set[str]:
    """Returns hashes of the code that made the resumable parts left by a killed run."""
    if not store.is_local:
        return set()
    found = Path(store.path(f"{folder}/work")).glob(f"*.{SOURCES}")
    used = [file for file in found if (parts := file.with_suffix("")).is_dir() and any(parts.iterdir())]
    return {line for file in used for line in file.read_text().split()}


def rows_enter(task: GatherTask) -> bool:
    """Returns True if this step adds new rows to the root; some may have to be excluded."""
    return not task.inputs and "id" in task.schema_out.names


def clear_unfinished(store: Store, folder: str) -> None:
    """Removes what an unfinished or outdated run left, except its parts in `work/` and files the engine did not write."""
    store.remove(f"{folder}/manifest.json")
    for name in store.list(folder):
        if name not in ("work", STEP_FILE) and is_engines(name):
            store.remove(f"{folder}/{name}")


class _folders:  # lower case: used like a function
    """Context manager with two local folders: one for resumable parts, one for unfinished artifacts."""

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
    """Cuts emitted rows into shards of `shard_rows` rows, keyed by content.

    Excluded rows are removed after the cut but count in the key, so that other shards do not change.
    """

    task: GatherTask
    excluded: Excluded | None
    rejects: RejectsWriter
    shards: list[tuple[Shard, int, dict[str, Any]]] = field(default_factory=list)
    _pending: list[pa.Table] = field(default_factory=list)
    _num_pending: int = 0
    _rejected: IdHashes = field(default_factory=IdHashes)

    def emit(self, table: pa.Table) -> None:
        """Adds rows. Raises SchemaError or VlpipeError if the table does not conform to the declared columns."""
        try:
            table = conform(table, self.task.schema_out, f"step {self.task.step}")
        except ValueError as error:
            raise VlpipeError(str(error)) from error
        if not table.num_rows:
            return
        self._pending.append(table)
        self._num_pending += table.num_rows
        if self._num_pending >= self.task.shard_rows:
            self._cut(final=False)

    def reject(self, rejects: Iterable[Reject]) -> None:
        for one in rejects:
            self.rejects.add(one)
            if self.task.stage.CONSERVES:
                self._rejected.add([one.id])

    def _cut(self, *, final: bool) -> None:
        if not self._pending:
            return
        table, size = pa.concat_tables(self._pending), self.task.shard_rows
        stop = table.num_rows if final else table.num_rows - table.num_rows % size
        for start in range(0, stop, size):
            self._write(table.slice(start, min(size, stop - start)))
        rest = table.slice(stop)
        self._pending, self._num_pending = ([rest] if rest.num_rows else []), rest.num_rows

    def _write(self, rows: pa.Table) -> None:
        path = shard_path(self.task.folder, len(self.shards))
        stats: dict[str, dict[str, Any]] = {}
        if "id" in rows.schema.names:
            ids = OwnIds(f"shard {len(self.shards)}: ")
            ids.add(rows["id"])
            ids.check()
        listed, (rows, left_out) = rows, self.excluded.split(rows) if self.excluded else (rows, [])
        self.reject(left_out)
        shard = write_shard(self.task.store, path, [rows], self.task.schema_out, stats=stats)
        pointers = tuple(
            Heavy(name, path, shard.digest, shard.footer)
            for name in sorted(heavy_names(self.task.schema_out))
        )
        key = sha256_json("content", _digest_of(listed, self.task.schema_out) if left_out else shard.digest)
        full = dataclasses.replace(shard, key=key, heavy=pointers)
        self.shards.append((full, self.task.store.size(path), stats))

    def finish(self, seconds: float, spent: Mapping[str, float]) -> list[Receipt]:
        self._cut(final=True)
        rows_in = sum(d.num_rows for d in self.task.inputs)
        if self.task.stage.CONSERVES:
            self._check_conserved()
        codes = self.rejects.finish()
        if codes and not self.shards:
            self._write(self.task.schema_out.empty_table())
        run = {"seconds": round(seconds, 3), "host": platform.node(), "attempts": 1}
        run |= {kind: round(value, 6) for kind, value in spent.items()}
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
                rejects_digest=self.rejects.digest if index == 0 else "",
                columns=stats,
                source=self.task.hooks.recorded_code(self.task.stage),
                run=run if index == 0 else {},
            )
            for index, (shard, size, stats) in enumerate(self.shards)
        ]
        for receipt in receipts:
            write_receipt(self.task.store, self.task.folder, receipt)
        return receipts

    def _check_conserved(self) -> None:
        def ids(datasets: Sequence[Dataset]) -> Iterator[list[str]]:
            for one in datasets:
                for batch in one.batches(["id"]):
                    yield batch["id"].to_pylist()

        shards = tuple(shard for shard, _, _ in self.shards)
        made = Dataset(self.task.store, self.task.step, self.task.schema_out, shards)
        check_conserved_large("the stage", lambda: ids(self.task.inputs), lambda: ids([made]), self._rejected)


def _digest_of(rows: pa.Table, schema: pa.Schema) -> str:
    """Returns the digest that these rows would have as a shard; computed from a temporary file."""
    with tempfile.TemporaryDirectory(prefix="vlpipe-") as folder:
        path = Path(folder) / "shard.parquet"
        with ShardWriter(str(path), schema) as writer:
            writer.write(rows)
        return sha256_file(path)
