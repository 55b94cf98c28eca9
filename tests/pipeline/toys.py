"""Small real stages for the engine's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work


def payload(n: int, num_bytes: int) -> bytes:
    """Bytes that no codec makes smaller."""
    return hashlib.shake_128(str(n).encode()).digest(num_bytes)


@dataclass(frozen=True, kw_only=True)
class Numbers(SourceStage):
    """Rows n = 0..num_rows-1 (or as many as the file `list` says), with a heavy column made by the work."""

    num_rows: int = 0
    list: ListFile | None = None
    payload_bytes: int = 10

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("n", pa.int64())])

    def rows(self) -> Iterator[pa.Table]:
        num = int(Path(self.list.path).read_text()) if self.list else self.num_rows
        for start in range(0, num, 7):
            ns = list(range(start, min(start + 7, num)))
            yield pa.table({"id": [f"id{n}" for n in ns], "n": ns}, self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("payload", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t.append_column(
            "payload", [[payload(n, self.payload_bytes) for n in t["n"].to_pylist()]]
        )


@dataclass(frozen=True, kw_only=True)
class SourcedNumbers(Numbers):
    source: str = "web"
    more: dict[str, File] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scale(MapStage):
    by: int = 2
    seconds: float = 0.0
    calls: str = ""  # a file that counts the rows worked on

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"seconds", "calls"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Scale", n=pa.int64())
        return with_field(inp, pa.field("scaled", pa.int64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            if self.calls:
                with open(self.calls, "a") as file:
                    file.write("x" * table.num_rows)
            time.sleep(self.seconds)
            scaled = pc.multiply(table["n"], self.by)
            at = table.schema.get_field_index("scaled")
            return (
                table.set_column(at, "scaled", scaled) if at >= 0 else table.append_column("scaled", scaled)
            )

        yield work


@dataclass(frozen=True, kw_only=True)
class Every(MapStage):
    """Keeps every k-th row; the others are filtered."""

    k: int = 4

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            keep = pc.equal(pc.subtract(table["n"], pc.multiply(pc.divide(table["n"], self.k), self.k)), 0)
            gone = table.filter(pc.invert(keep))["id"].to_pylist()
            return Out(table.filter(keep), [Reject(i, "filtered", "not_kth") for i in gone])

        yield work


@dataclass(frozen=True, kw_only=True)
class Breaks(MapStage):
    """Raises on rows whose n is in `bad`, and once only (it passes) on those in `passing`."""

    bad: tuple[int, ...] = ()
    passing: tuple[int, ...] = ()
    kills: tuple[int, ...] = ()
    typed: bool = False
    memory: bool = False
    mend: str = ""  # a file: while it exists nothing is bad (the world got better)
    MAX_REJECT_RATE: ClassVar[float] = 0.05
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"mend"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        seen: set[int] = set()

        def work(table: pa.Table) -> pa.Table:
            for n in table["n"].to_pylist():
                if n in self.kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                if n in self.passing and n not in seen and table.num_rows == 1:
                    seen.add(n)
                    raise ValueError("passes")
                if n in self.bad and not (self.mend and Path(self.mend).exists()):
                    if self.memory:
                        raise MemoryError("no memory")
                    raise RowFault("odd", f"n is {n}") if self.typed else ValueError("cannot do this row")
            return table

        yield work


@dataclass(frozen=True, kw_only=True)
class BreaksInActor(Breaks):
    LOADS_WEIGHTS: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Timed(MapStage):
    """Takes `seconds` per row group; notes in the file `times` when each began and ended.

    From row `patient` on it waits until the file `meets` is there: for a minute, then it fails.
    """

    seconds: float
    times: str
    meets: str = ""
    patient: int = 40
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"seconds", "times", "meets", "patient"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            began = time.monotonic()
            time.sleep(self.seconds)
            while self.meets and table["n"][0].as_py() >= self.patient and not Path(self.meets).exists():
                assert time.monotonic() < began + 60, f"{self.meets} did not come"
                time.sleep(0.02)
            with open(self.times, "a") as file:
                file.write(f"{began} {time.monotonic()}\n")
            return table

        yield work


@dataclass(frozen=True, kw_only=True)
class TimedInActor(Timed):
    LOADS_WEIGHTS: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Placed(MapStage):
    """Adds what its process was given: CUDA_VISIBLE_DEVICES, the device, Ray's memory. Torch finds a GPU for the time."""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        for field in (pa.field("visible", pa.string()), pa.field("device", pa.string())):
            inp = with_field(inp, field)
        return with_field(inp, pa.field("memory", pa.float64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        import ray
        import torch

        def work(table: pa.Table) -> pa.Table:
            here = ray.get_runtime_context().get_assigned_resources() if ray.is_initialized() else {}
            with ThreadPoolExecutor(1) as pool:  # threads of a stage hear it too
                device = pool.submit(device_of_step).result()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
            for name, value in (
                ("visible", visible),
                ("device", device),
                ("memory", here.get("memory", 0.0)),
            ):
                table = table.append_column(name, pa.array([value] * table.num_rows))
            return table

        with (
            patch.object(torch.cuda, "is_available", lambda: True),
            patch.object(torch.cuda, "device_count", lambda: 1),
        ):
            yield work


@dataclass(frozen=True, kw_only=True)
class PlacedInActor(Placed):
    LOADS_WEIGHTS: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Loses(MapStage):
    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t.slice(1)


@dataclass(frozen=True, kw_only=True)
class Deaf(MapStage):
    """Ctrl-C comes while it works, and it does not let it through."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            return rows

        yield work


@dataclass(frozen=True, kw_only=True)
class NamesNoSignal(MapStage):
    """A library interrupted by SIGTERM that raises its own KeyboardInterrupt, as Ray does while it waits."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            raise KeyboardInterrupt

        yield work


@dataclass(frozen=True, kw_only=True)
class Payload(MapStage):
    """Reads the heavy column that another step wrote."""

    READS_HEAVY: ClassVar[tuple[str, ...]] = ("payload",)
    LOADS_WEIGHTS: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Payload", payload=pa.binary())
        return with_field(inp, pa.field("size", pa.int64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t.append_column(
            "size", pa.array([len(b) for b in t["payload"].to_pylist()], pa.int64())
        )


@dataclass(frozen=True, kw_only=True)
class Sum(GatherStage):
    """Sums `scaled` over everything; result as rows and as an artifact; its parts are resumable."""

    die_once: str = ""
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"die_once"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])

    def run(self, job: Job) -> None:
        total, num = 0, 0
        for one in job.inputs:
            for batch in one.batches(["n"]):
                total += pc.sum(batch["n"]).as_py() or 0
                num += batch.num_rows
        job.say(f"total {total}")
        part = Path(job.work) / "part.json"
        part.write_text(json.dumps(total))
        if self.die_once and not Path(self.die_once).exists():
            Path(self.die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(job.artifacts) / "sum.json").write_text(json.dumps(total))
        job.emit(pa.table({"name": ["sum"], "value": [float(total)], "num_rows": [num]}))


@dataclass(frozen=True, kw_only=True)
class OnlyArtifact(GatherStage):
    """Puts a file, emits no row: it has no shard."""

    seconds: float = 0.0
    touches: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        time.sleep(self.seconds)
        if self.touches:
            Path(self.touches).touch()
        (Path(job.artifacts) / "a.txt").write_text("a")


@dataclass(frozen=True, kw_only=True)
class AddSum(MapStage):
    total: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("total", pa.int64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        total = json.loads(Path(self.total.path).read_text())
        yield lambda t: t.append_column("total", pa.array([total] * t.num_rows, pa.int64()))


@dataclass(frozen=True, kw_only=True)
class Launches(GatherStage):
    """Runs a function through `job.launch`, as training does."""

    num_workers: int = 1
    gpu: bool = False
    LAUNCHES: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("n", pa.int64())])

    def run(self, job: Job) -> None:
        job.launch(_launched, {"to": job.artifacts}, num_workers=self.num_workers)
        job.emit(pa.table({"n": [int((Path(job.artifacts) / "n.txt").read_text())]}))


def _launched(config: dict[str, str]) -> None:
    (Path(config["to"]) / "n.txt").write_text("7")


@dataclass(frozen=True, kw_only=True)
class Unopenable(MapStage):
    """Its weights cannot be loaded."""

    LOADS_WEIGHTS: ClassVar[bool] = True

    @contextmanager
    def open(self) -> Iterator[Work]:
        raise ValueError("the weights are of another model")
        yield


@dataclass(frozen=True, kw_only=True)
class Told(MapStage):
    """Adds a column: how many rows its work knew of when it was called with this one."""

    ROW_GROUP_ROWS: ClassVar[int] = 4

    name: str

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field(self.name, pa.int64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield ToldWork(self.name)


class ToldWork:
    num_ahead = 2

    def __init__(self, name: str) -> None:
        self._name, self._told = name, 0

    def ahead(self, batch: pa.Table) -> None:
        self._told += batch.num_rows

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.append_column(self._name, pa.array([self._told] * batch.num_rows, pa.int64()))
