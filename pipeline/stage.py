"""Base classes of stages. A stage is a frozen dataclass whose fields are its YAML parameters.

MapStage: row group -> row group (+ rejects), shard by shard, by the function that `open` yields.
SourceStage: a map stage that also lists its input rows.
GatherStage: reads all of its inputs at once, for global decisions, training and evaluation.
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
    """Base of all stages. Subclasses are `@dataclass(frozen=True, kw_only=True)`. `schema` is called while planning."""

    # The stage's name in keys, independent of its module's path. For a class without a NAME of its own, it is its `use:`.
    NAME: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1  # raise it when the same parameters give different rows
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset()  # parameters that cannot change the rows
    # parameters that earlier versions of the stage did not have; at their default, which must be what those did, they are
    # not in the key either, so that rows made before are used
    ADDED: ClassVar[frozenset[str]] = frozenset()
    # for a parameter in ADDED whose default differs from what earlier versions did: the value that reproduces them
    BEFORE: ClassVar[Mapping[str, Any]] = {}
    # mappings whose order changes the rows; the order of others is not in the key
    ORDERED: ClassVar[frozenset[str]] = frozenset()
    # Computes with torch: the engine sets the number of threads, which is part of the key.
    TORCH: ClassVar[bool] = False
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        """Returns the output columns for the input columns. Check what is read with `need`, which raises SchemaError."""
        return inp

    def identity(self, use: str) -> tuple[str | int, ...]:
        """Returns (name, VERSION) for keys. use: the class path in the YAML, the name if the class defines no NAME itself.

        NAME is not inherited because a subclass may compute something else.
        """
        return (vars(type(self)).get("NAME") or use, self.VERSION)

    def with_resources(self, cpus: float, gpus: float) -> Stage:
        """Returns the stage as a step with these resources runs it: with the parameters set whose default depends on them.

        Keys are made from the stage that this returns.
        """
        return self

    def with_inputs(self, names: Sequence[str]) -> Stage:
        """Returns the stage as a step with these inputs runs it: with the parameters set that follow from their names.

        names: of the input steps, in order. Keys are made from the stage that this returns. Raises VlpipeError if the names
        do not fit the parameters.
        """
        return self

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        """Returns the names of input steps on which the result depends, such as those in a table. names: of all inputs."""
        return ()

    def trials(self) -> AbstractContextManager[Callable[[int], None]] | None:
        """Returns what `vlpipe tune` measures, or None if the stage has no parameter `batch_size` to tune.

        It loads the model and yields a function that computes one batch of the given size on made-up input and waits for the
        device.
        """
        return None

    def sampled(self) -> Stage:
        """Returns the stage as `vlpipe run --sample` runs it: one that computes in steps does a few of them."""
        return self

    def num_steps_for(self, num_rows: int) -> int | None:
        """Returns how many equal steps the stage computes for this number of input rows; None: its time grows with rows.

        A stage that returns a number sets `Job.spent["per_step"]`.
        """
        return None

    def runs(self) -> Stage:
        """Returns the stage whose code makes the rows: this one, unless it runs another stage."""
        return self

    def estimate(self, num_rows: int) -> str:
        """Returns one line for `vlpipe plan` about the cost of at most `num_rows` rows; empty: nothing is shown."""
        return ""

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        """Returns lines for `vlpipe why` that explain what a gather stage decided about the input row `row`."""
        return []

    def preflight(self) -> list[str]:
        """Returns one line per problem that would make the run fail (a missing extra, an impossible parameter)."""
        return []

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        """Returns one line per problem with the steps whose artifacts this one reads. stages: step name -> its stage.

        Called if `preflight` returns no problem.
        """
        return []


Work = Callable[[pa.Table], pa.Table | Out]


@runtime_checkable
class AheadWork(Protocol):
    """Work that prefetches: the engine calls `ahead(batch)` up to `num_ahead` (set by the work) batches before the work."""

    num_ahead: int

    def ahead(self, batch: pa.Table) -> None: ...

    def __call__(self, batch: pa.Table) -> pa.Table | Out: ...


@runtime_checkable
class PartsWork(Protocol):
    """Work whose output for a batch may not fit into memory.

    `parts(batch)` yields it in parts, at least one, which are written one by one; together they are what the call returns.
    Unless the stage has `OBSERVES_WORLD`, an error that is due to a row is raised before the first part: after it, the
    shard's attempt fails.
    """

    def parts(self, batch: pa.Table) -> Iterator[Out]: ...

    def __call__(self, batch: pa.Table) -> pa.Table | Out: ...


REFUSED_ALL = (
    "refused_all:"  # a count of a stage that fetches: of URLs of a host, in a batch in which it refused all
)
TIMED = ("waiting", "computing")  # kinds of `TimedWork.seconds`


@runtime_checkable
class TimedWork(Protocol):
    """Work that tells what its time went into. `seconds()`: seconds by kind since it was last called: `waiting` for input,
    `computing`. They are stored in the shard's receipt.
    """

    def seconds(self) -> dict[str, float]: ...

    def __call__(self, batch: pa.Table) -> pa.Table | Out: ...


@runtime_checkable
class CommittingWork(Protocol):
    """Work that records something beside its rows, such as a server's answers.

    `committing()` is called when all rows of a shard are written, before its receipt: what was recorded is safe when it
    returns. It returns figures for the receipt's `run`, which are for information only.
    """

    def committing(self) -> Mapping[str, float]: ...

    def __call__(self, batch: pa.Table) -> pa.Table | Out: ...


class MapStage(Stage):
    """Maps a row group to a row group. With several inputs (`from: [a, b]`) it processes the shards of each in turn.

    To drop a row, the function returns `Out` with a `Reject` for it. If the function raises, the row group is bisected
    until the rows that raise on their own are found; those become rejects (`RowFault` sets the code). Rows with a value
    that cannot be cast to the declared type also become rejects (code `bad_value`).
    """

    READS_HEAVY: ClassVar[tuple[str, ...]] = ()  # heavy columns joined into the batches
    LOADS_WEIGHTS: ClassVar[bool] = False  # `open` is expensive: run in actors that open once
    FILTERS: ClassVar[bool] = False  # drops rows by a rule; the engine warns if it drops none of many
    FAN_OUT: ClassVar[bool] = False  # output rows are children: `parent` is the id of an input row
    ROW_GROUP_ROWS: ClassVar[int] = ROW_GROUP_ROWS  # fewer for wide columns: aim at 32 MB
    # Talks to external servers (fetching), so rows are never requested again to find a failing one: the stage must return
    # a reject for each row that fails, and an exception fails the shard.
    OBSERVES_WORLD: ClassVar[bool] = False
    # Max share of faults, above which the step fails. YAML: `max_reject_rate`.
    MAX_REJECT_RATE: ClassVar[float] = 0.05

    def service(self, context: ServiceContext) -> Service | None:
        """Returns the object shared by all workers of this step, or None. Called once, in the driver.

        `open` connects to it through `service.address()`.
        """
        return None

    @abstractmethod
    def open(self) -> AbstractContextManager[Work]:
        """Loads what is needed once, yields the work function, releases on exit. Use `@contextmanager`."""


class SourceStage(MapStage):
    """A map stage that lists its own input. `rows` is cheap and ordered (a URL list); `open` does the work (fetching)."""

    SHARD_ROWS: ClassVar[int] = SHARD_ROWS  # default of `shard_rows`; choose fewer if a row takes long

    @abstractmethod
    def row_schema(self) -> pa.Schema:
        """Returns the columns of the listed rows, which must include `id`."""

    @abstractmethod
    def rows(self) -> Iterator[pa.Table]:
        """Yields the rows to process, in a fixed order. The engine cuts them into shards of `shard_rows` rows."""

    def max_rows(self) -> int | None:
        """Returns an upper bound on the number of rows, if it is cheap to find, as in file metadata; else None."""
        return None


@dataclass(frozen=True)
class Dataset:
    """All shards of one step, in order."""

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
        """Yields the row groups of all shards in order. `columns` and `want_heavy` are as in `read_batches`."""
        for shard in self.shards:
            yield from read_batches(self.store, shard, columns, want_heavy)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns all rows in memory as one table. columns: None reads every light column."""
        names = [f.name for f in self.schema if not is_heavy(f)] if columns is None else list(columns)
        schema = pa.schema([self.schema.field(n).remove_metadata() for n in names])
        return pa.concat_tables([schema.empty_table(), *(b.cast(schema) for b in self.batches(names))])


@dataclass
class Job:
    """Inputs of a gather stage, and the functions and folders that take its results."""

    inputs: tuple[Dataset, ...]
    work: str  # local folder for resumable parts; survives a kill if the root is local; one per inputs digest
    artifacts: str  # local folder; its content becomes the step's artifacts when the step is done
    emit: Callable[[pa.Table], None]  # adds output rows
    reject: Callable[[Sequence[Reject]], None]
    # launch(fn, config, num_workers=1, gpu=False) runs fn(config): one worker in this process, several with Ray Train.
    launch: Callable[..., None]
    say: Callable[[str], None] = field(default=print)  # shows one line to the user
    spent: dict[str, float] = field(
        default_factory=dict
    )  # seconds by kind, which the stage may set; for the receipt


class GatherStage(Stage):
    """Reads all inputs at once; emits rows, writes artifacts, or both. Long-running stages checkpoint in `job.work`."""

    # The engine checks that output rows + rejects are exactly the input rows.
    CONSERVES: ClassVar[bool] = False
    # What one output row is, if output rows are not input rows. A stage declares either CONSERVES or ROWS_ARE.
    ROWS_ARE: ClassVar[str] = ""
    LAUNCHES: ClassVar[bool] = False  # computes in `job.launch`, whose workers get the step's resources
    num_workers: int = 1  # passed to `job.launch`; a stage that launches may make this and `gpu` parameters
    gpu: bool = False
    processes: int | None = None  # in place of num_workers, where that is a part of the result
    least_processes: int | None = None  # with which it goes on while a cluster lacks nodes for all; None: all
    # The artifacts are the input rows in another form (an export). When `vlpipe forget` removes one of these rows, it
    # removes the whole step and the next run rebuilds it. Other artifacts (a model) are kept and only reported.
    COPIES: ClassVar[bool] = False
    # File name of a Parquet artifact -> its columns that hold row ids, as dotted paths (see `shard.reference_columns`).
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    SHARD_ROWS: ClassVar[int] = SHARD_ROWS  # default of `shard_rows`

    @abstractmethod
    def run(self, job: Job) -> None: ...
