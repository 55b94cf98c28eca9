"""What `scale.py` measures, each in a process of its own: `python scale_cases.py prepare|measure CASE SIZE FOLDER`.

A case is a function that lays out a folder, and one that is timed. They use the library that is installed beside this
Python, so that an older one can be measured too.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.engine import plan
from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.planned import inputs_digest, read_digests
from vlpipe.pipeline.engine.records.manifest import make_manifest, write_manifest, write_step_file
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts, receipt_path, shard_path
from vlpipe.pipeline.engine.records.root_format import write_format
from vlpipe.pipeline.inspect import status, why
from vlpipe.pipeline.inspect.on_disk import find_place
from vlpipe.pipeline.shard import Out, Reject, Shard
from vlpipe.pipeline.stage import MapStage, SourceStage, Work
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

NUMBERS = pa.schema([("id", pa.string()), ("n", pa.int64())])
SHARDS = 100_000  # of each step of a finished root
STATS = {name: {"nulls": 0} for name in ("id", "url", "texts")} | {
    "score": {"nulls": 9, "min": 0.1, "max": 0.9}
}


@dataclass(frozen=True, kw_only=True)
class Numbers(SourceStage):
    """Rows n = 0 .. num_rows - 1, `table_rows` at a time."""

    num_rows: int
    table_rows: int = 10_000

    def row_schema(self) -> pa.Schema:
        return NUMBERS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return NUMBERS

    def rows(self) -> Iterator[pa.Table]:
        for start in range(0, self.num_rows, self.table_rows):
            numbers = range(start, min(start + self.table_rows, self.num_rows))
            yield pa.table([[f"id{n:06d}" for n in numbers], list(numbers)], schema=NUMBERS)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


@dataclass(frozen=True, kw_only=True)
class Same(MapStage):
    """Rows as they are. faults: the first row of each batch is a fault."""

    number: int = 0
    faults: bool = False

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self.work

    def work(self, rows: pa.Table) -> Out:
        gone = rows["id"].to_pylist()[: int(self.faults)]
        return Out(rows.slice(len(gone)), [Reject(id_, "fault", "broken", "as it was told") for id_ in gone])


@dataclass(frozen=True, kw_only=True)
class Estimates(Same):
    """Wants to know how many rows will come, as training does."""

    def estimate(self, num_rows: int) -> str:
        return f"at most {num_rows} rows"


def write_workflow(folder: Path, *steps: str) -> None:
    """Steps one below the other, `a`, `b`, ..., each a YAML mapping without its `from`."""
    lines, names = ["name: scale", "steps:"], [f"s{k:02d}" for k in range(len(steps))]
    for k, (name, step) in enumerate(zip(names, steps, strict=True)):
        lines.append(f"  {name}: {{{step}{f', from: {names[k - 1]}' if k else ''}}}")
    (folder / "root").mkdir(parents=True, exist_ok=True)
    (folder / "w.yaml").write_text("\n".join(lines) + "\n")


def planned(folder: Path) -> tuple[list[Any], Store]:
    found = Workflow.load(str(folder / "w.yaml"), root=str(folder / "root"))
    store = Store(str(folder / "root"))
    return plan.plan(found, store), store


def run(folder: Path, num_steps: int | None = None) -> int:
    """Runs what is left to do; how many shards were taken as they lay there."""
    reused = []
    steps, store = planned(folder)
    watcher = Watcher(shard=lambda one, receipt, old: reused.append(old))
    new_run(steps[:num_steps], store, local_executor(), watcher).go()
    return sum(reused)


def commit(one: Any, store: Store, receipts: list[Receipt]) -> None:
    """The records of a finished step, as a run writes them; its shards are not there."""
    inputs = tuple(above.folder for above in one.above)
    write_format(store)
    write_step_file(store, one.keyed, inputs, one.schema_out)
    digest, read = inputs_digest(one), read_digests(one)
    manifest = make_manifest(one.keyed, one.schema_out, inputs, digest, read, receipts, {})
    write_manifest(store, one.folder, manifest, receipts)
    one.finish(manifest)


def made_up(one: Any, num_shards: int) -> list[Receipt]:
    """Receipts as a step over web images has them."""
    found = []
    for index in range(num_shards):
        digest = hashlib.sha256(f"{one.name} {index}".encode()).hexdigest()
        shard = Shard(path=shard_path(one.folder, index), num_rows=9_000, digest=digest, key=digest[::-1])
        run = {"seconds": 12.345, "host": "worker-17", "attempts": 1}
        told = {"rejects": {"fault:timeout": 900, "fault:http_404": 100}, "columns": STATS, "run": run}
        source = one.keyed.source
        found.append(
            Receipt(
                index=index,
                shard=shard,
                bytes=10**8,
                rows_in=10**4,
                input_digest=digest,
                source=source,
                **told,
            )
        )
    return found


def lay_out_finished(folder: Path, num_steps: int, num_shards: int = SHARDS) -> None:
    same = ['use: "scale_cases:Same", number: ' + str(k) for k in range(num_steps - 2)]
    write_workflow(folder, 'use: "scale_cases:Numbers", num_rows: 5', *same)
    steps, store = planned(folder)
    assert len(steps) == num_steps
    for one in steps:
        commit(one, store, made_up(one, num_shards))


def plan_finished(folder: Path, size: int) -> str:
    steps, _ = planned(folder)
    assert all(one.is_done for one in steps), [one.reason for one in steps]
    return ""


def status_finished(folder: Path, size: int) -> str:
    steps, store = planned(folder)
    found = status.status(steps, store)
    assert len(found) == len(steps)
    return ""


def lay_out_rows(folder: Path, num_rows: int) -> None:
    write_workflow(
        folder, f'use: "scale_cases:Numbers", num_rows: {num_rows}', *['use: "scale_cases:Same"'] * 3
    )
    run(folder)


def why_row(folder: Path, num_rows: int) -> str:
    steps, store = planned(folder)
    found = why.history(steps, store, f"id{num_rows - num_rows // 7:06d}")
    assert len(found.events) >= len(steps) - 1
    return ""


def write_list(folder: Path, num_rows: int, ending: str) -> Path:
    """Different rows, of 40 characters of URL and 50 of text."""
    path = folder / f"list.{ending}"
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("url", pa.string()), ("text", pa.string())])
    writer = pq.ParquetWriter(path, schema) if ending == "parquet" else None
    with path.open("a") as file:
        for start in range(0, num_rows, 100_000):
            rows = range(start, min(start + 100_000, num_rows))
            urls = [f"https://host{n % 5000}.example/pictures/{n:09d}.jpg" for n in rows]
            texts = [f"picture {n} of a thing on a table beside the window" for n in rows]
            if writer is not None:
                writer.write_table(pa.table([urls, texts], schema=schema))
            else:
                pairs = zip(urls, texts, strict=True)
                file.writelines(json.dumps({"url": url, "text": text}) + "\n" for url, text in pairs)
    if writer is not None:
        writer.close()
    return path


def lay_out_list(folder: Path, num_rows: int, ending: str = "parquet") -> None:
    images = f'use: "fetching.images:FetchImages", list: "{write_list(folder, num_rows, ending)}"'
    write_workflow(folder, images, 'use: "scale_cases:Estimates"')


def command_plan(folder: Path, size: int) -> str:
    from vlpipe.pipeline.cli.app import app

    app(["plan", str(folder / "w.yaml"), "--root", str(folder / "root")], standalone_mode=False)
    return ""


def list_rows(folder: Path, num_rows: int) -> str:
    run(folder, num_steps=1)
    steps, _ = planned(folder)
    assert steps[0].is_done
    assert steps[0].manifest.rows_out == num_rows
    return ""


def lay_out_half_done(folder: Path, num_shards: int) -> None:
    """As if killed just before the step was committed; in each shard one row of 20 is a fault."""
    rows = f'use: "scale_cases:Numbers", num_rows: {20 * num_shards}, shard_rows: 20'
    write_workflow(folder, rows, 'use: "scale_cases:Same", faults: true, max_reject_rate: 0.1')
    run(folder)
    step = planned(folder)[0][-1].folder
    for name in ("manifest.json", "_shards.parquet"):
        (folder / "root" / step / name).unlink()


def resume(folder: Path, num_shards: int) -> str:
    assert run(folder) == num_shards
    return ""


def lay_out_singles(folder: Path, num_rows: int) -> None:
    write_workflow(
        folder, f'use: "scale_cases:Numbers", num_rows: {num_rows}, table_rows: 1, shard_rows: {num_rows}'
    )


def singles(folder: Path, num_rows: int) -> str:
    run(folder, num_steps=1)
    return ""


def long_names(folder: Path, num_shards: int) -> str:
    """Plan, then the last shard's receipt by its number, and its path by its name."""
    steps, store = planned(folder)
    assert all(one.is_done for one in steps)
    receipts = read_receipts(store, steps[-1].folder)
    assert [one.index for one in receipts] == list(range(num_shards))
    last = receipts[-1]
    store.write_json(receipt_path(steps[-1].folder, last.index), last.to_json())
    (folder / "root" / last.shard.path).touch()
    assert find_place(str(folder / "root" / last.shard.path)).index == num_shards - 1
    return Path(last.shard.path).name


CASES: dict[str, tuple[Callable[[Path, int], None], Callable[[Path, int], str]]] = {
    "plan": (lay_out_finished, plan_finished),
    "status": (lay_out_finished, status_finished),
    "why": (lay_out_rows, why_row),
    "list_plan": (lay_out_list, command_plan),
    "resume": (lay_out_half_done, resume),
    "singles": (lay_out_singles, singles),
    "list_parquet": (lay_out_list, list_rows),
    "list_jsonl": (lambda folder, size: lay_out_list(folder, size, "jsonl"), list_rows),
    "long_names": (lambda folder, size: lay_out_finished(folder, 3, size), long_names),
}


def peak_mb() -> float:
    """Of this process; the other number that the system gives begins with that of its parent."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def main() -> None:
    what, case, size, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    os.chdir(Path(__file__).parent)
    lay_out, measured = CASES[case]
    if what == "prepare":
        lay_out(folder, size)
        return
    wall, cpu = time.perf_counter(), time.process_time()
    said = measured(folder, size)
    found = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak_mb(),
        "said": said,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
