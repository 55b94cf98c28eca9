"""What is done to rows. A stage is a frozen dataclass, its fields are its YAML parameters; the work is a closure.

MapStage: row group -> row group (+ rejects), shard by shard. SourceStage: the same, over rows it lists itself.
GatherStage: everything before it at once: global decisions, training, evaluation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyarrow as pa
from pydantic import ConfigDict

from vlpipe.pipeline.service import Service, ServiceContext
from vlpipe.pipeline.shard import ROW_GROUP_ROWS, Out, Reject, Shard, is_heavy, read_batches
from vlpipe.pipeline.storage.store import Store

SHARD_ROWS = 10_000


class Stage:
    """Subclasses are `@dataclass(frozen=True, kw_only=True)`. `schema` is called with no data, by `vlpipe plan`."""

    # What the stage is called in keys, wherever its module lies. A class without one of its own is called what `use:` says.
    NAME: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1  # raise it when the same parameters give different rows
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset()  # parameters that cannot change the rows
    TORCH: ClassVar[bool] = False  # computes with torch: the engine sets its threads, and they are in the key
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        """Columns out for columns in. Check what is read with `need`; SchemaError when it is not there."""
        return inp

    def identity(self, use: str) -> tuple[str | int, ...]:
        """What the stage is in keys: name and VERSION. A subclass does not inherit the name: it may do something else."""
        return (vars(type(self)).get("NAME") or use, self.VERSION)

    def estimate(self, num_rows: int) -> str:
        """One line for `vlpipe plan`: what work on at most `num_rows` rows will be."""
        return ""

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        """For `vlpipe why`: what a gather stage made of a row that it read, one line each."""
        return []

    def preflight(self) -> list[str]:
        """What would make the run fail and can be known now (a missing extra, an impossible parameter), one line each."""
        return []


Work = Callable[[pa.Table], pa.Table | Out]


@runtime_checkable
class AheadWork(Protocol):
    """Work that waits for the world: it is told of batches before it is called with them, `num_ahead` of them."""

    num_ahead: int

    def ahead(self, batch: pa.Table) -> None: ...

    def __call__(self, batch: pa.Table) -> pa.Table | Out: ...


class MapStage(Stage):
    """Row group in, row group out. With several inputs (`from: [a, b]`) it runs over their shards, one after the other.

    Rows may be dropped only by returning `Out` with a `Reject` for each. An exception in the function is narrowed down by
    bisecting to the rows that raise it alone; those become rejects (`RowFault` names the code itself), as do rows with a
    value that does not become the declared type (code `bad_value`).
    """

    READS_HEAVY: ClassVar[tuple[str, ...]] = ()  # heavy columns joined into the batches
    LOADS_WEIGHTS: ClassVar[bool] = False  # `open` is expensive: run in actors that open once
    FILTERS: ClassVar[bool] = False  # it drops rows by a rule: to drop none of many is worth a warning
    FAN_OUT: ClassVar[bool] = False  # rows out are children: each has a `parent`, the id of a row in
    ROW_GROUP_ROWS: ClassVar[int] = ROW_GROUP_ROWS  # fewer for wide columns: aim at 32 MB
    # It asks others (fetching): no row is asked for again because of another one. It must make a reject of each row that
    # fails; an exception fails the shard.
    OBSERVES_WORLD: ClassVar[bool] = False
    MAX_REJECT_RATE: ClassVar[float] = 0.05  # of faults; the step fails above it (YAML: `max_reject_rate`)

    def service(self, context: ServiceContext) -> Service | None:
        """What all workers of this step talk to, made once in the driver; `open` finds it by `service.address()`."""
        return None

    @abstractmethod
    def open(self) -> AbstractContextManager[Work]:
        """Load what is needed once, yield the function, release on leaving. Use `@contextmanager`."""


class SourceStage(MapStage):
    """A map stage that lists its own input. `rows` is cheap and ordered (a URL list); `open` does the work (fetching)."""

    SHARD_ROWS: ClassVar[int] = SHARD_ROWS  # of a step without `shard_rows`; fewer where a row takes long

    @abstractmethod
    def row_schema(self) -> pa.Schema:
        """Columns of the listed rows; they have an `id`."""

    @abstractmethod
    def rows(self) -> Iterator[pa.Table]:
        """Yield the rows to work on, in a fixed order; they are cut into shards of `shard_rows` rows."""

    def max_rows(self) -> int | None:
        """How many rows it lists at most, if that is known without listing them (from a file's metadata, say)."""
        return None


@dataclass(frozen=True)
class Dataset:
    """All shards of a step, in order."""

    store: Store
    name: str
    schema: pa.Schema  # heavy columns included
    shards: tuple[Shard, ...]

    @property
    def num_rows(self) -> int:
        return sum(s.num_rows for s in self.shards)

    def batches(
        self, columns: Sequence[str] | None = None, want_heavy: Sequence[str] = ()
    ) -> Iterator[pa.Table]:
        """Row groups of all shards, in order; columns as in `read_batches`."""
        for shard in self.shards:
            yield from read_batches(self.store, shard, columns, want_heavy)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Light columns of all rows in memory."""
        names = [f.name for f in self.schema if not is_heavy(f)] if columns is None else list(columns)
        schema = pa.schema([self.schema.field(n).remove_metadata() for n in names])
        return pa.concat_tables([schema.empty_table(), *(b.cast(schema) for b in self.batches(names))])


@dataclass
class Job:
    """What a gather stage gets: its inputs, and where its results go."""

    inputs: tuple[Dataset, ...]
    work: str  # a local folder for its own resumable parts, kept when killed, tagged by the input digests
    artifacts: str  # a local folder; what is put here becomes the step's artifacts, whole, when it is done
    emit: Callable[[pa.Table], None]  # rows out
    reject: Callable[[Sequence[Reject]], None]
    launch: Callable[
        ..., None
    ]  # launch(fn, config, num_workers=1, gpu=False): Ray Train, or in this process with --local
    say: Callable[[str], None] = field(default=print)  # one line for the person watching


class GatherStage(Stage):
    """Reads all inputs; emits new rows, puts artifacts, or both. Long ones commit their own parts in `job.work`."""

    CONSERVES: ClassVar[bool] = False  # rows out + rejects must be exactly the rows in; the engine checks it
    ROWS_ARE: ClassVar[str] = (
        ""  # what the rows out are, where they are not the rows in: one of the two is declared
    )
    LAUNCHES: ClassVar[bool] = False  # the work happens in `job.launch`: its workers get the step's resources
    num_workers: int = (
        1  # what it passes to `job.launch`; a stage that launches may make parameters of these two
    )
    gpu: bool = False
    # The artifacts are the rows as they are, in another form (an export): `vlpipe forget` of one of them removes the step,
    # and the next run makes it again. Others stay (a model), and are named.
    COPIES: ClassVar[bool] = False
    # Of Parquet artifacts the columns that hold ids of rows, as `shard.reference_columns` spells them, by file name.
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    SHARD_ROWS: ClassVar[int] = SHARD_ROWS  # of a step without `shard_rows`

    @abstractmethod
    def run(self, job: Job) -> None: ...
